"""`--tiny`: the option of commands that run recipes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlhf_ray.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_ray.config.base import Section

tiny_option = click.option(
    "--tiny", is_flag=True, help="A recipe's tiny variant: models and data made here, minutes on two cores."
)


def tiny_overrides(files: tuple[Path, ...], overrides: tuple[str, ...], cls: "type[Section]") -> list[str]:
    """The overrides that make a recipe tiny, shown on the console; files it needs are made below the runs' root."""
    from rlhf_ray.config.load import load_config
    from rlhf_ray.demo.recipes.tiny import tiny_overlay
    from rlhf_ray.tracking.console import Console

    if not files:
        raise ConfigError("--tiny: give the recipe's --config FILE (a run that is resumed is tiny if it was)")
    recipe = files[0].stem
    config: Any = load_config(cls, files, overrides)
    console = Console()
    with console.progress(f"{recipe}: making tiny models and data"):
        overlay = tiny_overlay(recipe, Path(config.run.root) / "tiny-recipes")
    console.stage("Tiny", recipe)
    console.facts({key: str(value) for key, value in overlay.items()})
    return [f"{key}={json.dumps(value)}" for key, value in overlay.items()]
