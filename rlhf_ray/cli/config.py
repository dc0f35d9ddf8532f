"""`rlhf-ray config show|validate|schema|import`: look at a configuration without starting anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_ray.cli.stages import STAGES, config_class, config_options

if TYPE_CHECKING:
    from rlhf_ray.config.base import Section

stage_argument = click.argument("stage", type=click.Choice(STAGES))


@click.group()
def config() -> None:
    """Show, validate, describe or import configurations."""


@config.command()
@stage_argument
@config_options
def show(stage: str, files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Print the resolved configuration as YAML: files merged, overrides applied, defaults filled in."""
    from rlhf_ray.config.load import load_config, to_yaml

    resolved = load_config(config_class(stage), files, overrides)
    for line in _arithmetic(resolved):
        click.echo(f"# {line}")
    click.echo(to_yaml(resolved), nl=False)


@config.command()
@stage_argument
@config_options
def validate(stage: str, files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Check a configuration; exit code 2 and every problem by its key when it is wrong."""
    from rlhf_ray.config.load import load_config

    resolved = load_config(config_class(stage), files, overrides)
    lines = _arithmetic(resolved)
    click.echo(f"valid {stage} configuration")
    for line in lines:
        click.echo(f"  {line}")


@config.command()
@stage_argument
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead.")
def schema(stage: str, output: Path | None) -> None:
    """Print the JSON schema, with the meaning, bounds and default of every key (for editors: yaml.schemas)."""
    import json

    from rlhf_ray.config.export import json_schema

    text = json.dumps(json_schema(config_class(stage)), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


@config.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead.")
def import_(file: Path, output: Path | None) -> None:
    """Turn a flat JSON configuration of a fine-tuning service or a Hugging Face script into ours.

    \b
    rlhf-ray config import service.json -o mine.yaml

    Its strategy (rlhf, dpo, sft, qlora) decides which command runs the result. What was dropped is said, with the
    reason.
    """
    from rlhf_ray.config.import_json import import_json

    imported = import_json(file)
    for note in imported.notes:
        click.echo(f"note: {note}", err=True)
    for key, reason in imported.dropped.items():
        click.echo(f"dropped: {key} ({reason})", err=True)
    if output is None:
        click.echo(imported.to_yaml(), nl=False)
        return
    output.write_text(imported.to_yaml(), encoding="utf-8")
    click.echo(f"written: {output}; run it with {imported.command} --config {output}")


def _arithmetic(resolved: "Section | Any") -> list[str]:
    """What the numbers of a PPO run, or a pipeline's, come to; refused here too when they do not divide."""
    from rlhf_ray.config import PPOConfig
    from rlhf_ray.config.arithmetic import ppo_arithmetic
    from rlhf_ray.config.rlhf import RLHFConfig

    if isinstance(resolved, RLHFConfig):
        resolved = resolved.ppo
    return ppo_arithmetic(resolved).lines() if isinstance(resolved, PPOConfig) else []
