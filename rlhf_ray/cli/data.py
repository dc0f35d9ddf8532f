"""`rlhf-ray data check|convert|stats`: look at data, and put it right, before it costs an hour."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_ray.data.check import Checked

KINDS = ("preferences", "demonstrations", "prompts")
FAULTY = 2

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group()
def data() -> None:
    """Check, convert or describe prompts, demonstrations and preferences.

    Files are JSONL, JSON, CSV, Parquet or Arrow, folders of them, or hub names. They are read as a stream, so they may
    be larger than memory. KEY=VALUE sets a key of the section `data`: prompt_column=question, max_tokens=512.
    """


def _source_options(command: Function) -> Function:
    for decorate in (
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        click.argument("path", metavar="FILE"),
        click.option("--kind", type=click.Choice(KINDS), help="What the rows are; default: as their columns tell."),
        click.option("-m", "--model", help="Model or tokenizer: also render rows with it and count tokens."),
    ):
        command = decorate(command)
    return command


@data.command()
@_source_options
@click.option("--held-out", metavar="FILE", help="Rows held out: also find prompts that are in both files.")
@click.option("--show", default=5, show_default=True, help="Findings shown of each kind.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write up to 1,000 findings of a kind as JSON."
)
@click.pass_context
def check(
    ctx: click.Context,
    path: str,
    overrides: tuple[str, ...],
    kind: Any,
    model: str | None,
    held_out: str | None,
    show: int,
    report: Path | None,
) -> None:
    """Read every row; list each fault with its line and reason. Exit code 2 where there are errors.

    \b
    rlhf-ray data check pairs.jsonl
    rlhf-ray data check train.parquet --held-out test.parquet --model Qwen/Qwen2.5-0.5B max_tokens=1024
    """
    from rlhf_ray.data.check import check_leakage

    found = [_checked(path, overrides, kind, model)]
    if held_out:
        found.append(_checked(held_out, overrides, found[0].kind, model))
        check_leakage(found[0], found[1])
    for checked in found:
        _show(checked, show)
    if report:
        report.write_text(json.dumps([checked.as_dict() for checked in found], indent=2) + "\n", encoding="utf-8")
    ctx.exit(FAULTY if any(checked.findings.errors for checked in found) else 0)


@data.command()
@_source_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .jsonl or .parquet file.")
@click.option("--held-out", type=click.Path(path_type=Path), metavar="FILE", help="Put part of the rows here.")
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="How many of them; rows of a prompt stay together.",
)
@click.option("--seed", default=0, show_default=True, help="Which of them.")
def convert(
    path: str,
    overrides: tuple[str, ...],
    kind: Any,
    model: str | None,
    output: Path,
    held_out: Path | None,
    fraction: float,
    seed: int,
) -> None:
    """Write the rows without fault in the plain form, duplicates once.

    \b
    Pairs, ratings, rankings and transcripts become prompt, chosen and rejected.
    rlhf-ray data convert ratings.csv -o pairs.jsonl
    rlhf-ray data convert hh.jsonl -o train.parquet --held-out test.parquet --fraction 0.1
    """
    from rlhf_ray.data import convert as converting
    from rlhf_ray.data.walk import find_section

    checked = _checked(path, overrides, kind, model)
    _, section = find_section(path, _keys(overrides), checked.kind)
    split = converting.Split(fraction, seed, held_out) if held_out else None
    written = converting.convert(section, checked, output, split)
    _show(checked, 1)
    for file, rows in written.items():
        click.echo(f"{rows:,} rows written to {file}")


@data.command()
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(path: str, overrides: tuple[str, ...], kind: Any, model: str | None, as_json: bool) -> None:
    """Lengths, turns, prompts, ties, and how often the longer response is the chosen one."""
    from rlhf_ray.data.stats import stats as count
    from rlhf_ray.data.walk import find_section

    kind, section = find_section(path, _keys(overrides), kind)
    found = count(section, kind, _tokenizer(model)).as_dict()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if name in ("characters", "tokens"):
            for part, numbers in value.items():
                shown = ", ".join(f"{key} {number:,.0f}" for key, number in numbers.items())
                click.echo(f"{name} of {part}: {shown}")
        elif name == "messages_per_prompt":
            click.echo(f"messages per prompt: {', '.join(f'{turns} ({rows:,})' for turns, rows in value.items())}")
        elif name == "chosen_is_longer":
            click.echo(f"chosen is the longer one: {value:.1%}")
        else:
            click.echo(f"{name.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


def _checked(path: str, overrides: tuple[str, ...], kind: Any, model: str | None) -> "Checked":
    from rlhf_ray.data.check import check
    from rlhf_ray.data.walk import find_section

    kind, section = find_section(path, _keys(overrides), kind)
    return check(section, kind, _tokenizer(model))


def _keys(overrides: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE as a mapping, values read as YAML."""
    import yaml

    from rlhf_ray.errors import ConfigError

    keys = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is no KEY=VALUE.")
        keys[key.removeprefix("data.")] = yaml.safe_load(value)
    return keys


def _tokenizer(model: str | None) -> "PreTrainedTokenizerBase | None":
    if model is None:
        return None
    from rlhf_ray.hub import load_tokenizer

    return load_tokenizer(model)


def _show(checked: "Checked", show: int) -> None:
    from rlhf_ray.data.findings import ERRORS

    findings = checked.findings
    for kind, kept in findings.listed():
        color = "red" if kind in ERRORS else "yellow"
        click.secho(f"{kind}: {findings.counts[kind]:,}", fg=color)
        for finding in kept[:show]:
            click.echo(f"  {checked.unit} {finding.number}: {finding.reason}")
        if (more := findings.counts[kind] - show) > 0 and show:
            click.echo(f"  ... and {more:,} more")
    summary = f"{findings.errors:,} errors, {findings.warnings:,} warnings"
    click.echo(f"{checked.path}: {checked.rows:,} rows of {checked.kind}, {summary}")
    if checked.unit == "row" and (findings.errors or findings.warnings):
        click.echo("(the first row is row 0)")
