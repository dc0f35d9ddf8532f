"""`rlhf-ray runs list|show|verify`: what lies in the folder of runs, how each went, and whether it is whole."""

import json
from pathlib import Path
from typing import Any

import click

DAMAGED = 1

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


@click.group()
def runs() -> None:
    """List the runs in a folder, show one, verify its checkpoints."""


@runs.command("list")
@click.argument("root", type=click.Path(path_type=Path), default="runs")
@json_option
def list_runs(root: Path, as_json: bool) -> None:
    """The runs in ROOT (default: runs), oldest first: stage, status, step, newest checkpoint.

    A run is running (its process holds its lock), finished, interrupted (by Ctrl-C or a kill) or failed.
    """
    from rlhf_ray.tracking.console import Console
    from rlhf_ray.trainers.runs import find_runs, summarise

    found = [summarise(folder, root) for folder in find_runs(root)]
    if as_json:
        _print([vars(run) for run in found])
        return
    rows = [
        [run.name, run.stage or "?", run.status, str(run.step), _or_dash(run.checkpoint), _or_dash(run.since)]
        for run in found
    ]
    Console().table(["run", "stage", "status", "step", "checkpoint", "since"], rows)


@runs.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def show(run: Path, as_json: bool) -> None:
    """One run: its state, starts, checkpoints and last metrics."""
    from rlhf_ray.tracking.console import Console
    from rlhf_ray.trainers.runs import describe

    found = describe(run)
    if as_json:
        _print(found)
        return
    console = Console()
    console.stage(found["name"], found["folder"])
    console.facts(_facts(found))
    titles = ["checkpoint", "MiB", "ranks", "attempt", "metric", "written"]
    if found["checkpoints"]:
        console.table(titles, [_checkpoint_row(checkpoint) for checkpoint in found["checkpoints"]])
    if found["metrics"]:
        console.facts({name: "null" if value is None else f"{value:.6g}" for name, value in found["metrics"].items()})


@runs.command()
@click.argument("run", type=click.Path(path_type=Path), nargs=-1, required=True)
@json_option
@click.pass_context
def verify(ctx: click.Context, run: tuple[Path, ...], as_json: bool) -> None:
    """Read every byte of the checkpoints of one or more runs; exit code 1 where something is damaged.

    Each file is named with what is wrong: missing, of another length or checksum, unreadable. A resume takes the newest
    checkpoint that is whole.
    """
    from rlhf_ray.trainers.runs import problems_of

    found = {str(folder): problems_of(folder) for folder in run}
    if as_json:
        _print(found)
    else:
        for folder, parts in found.items():
            click.echo(folder)
            for part, problems in parts.items():
                click.echo(f"  {part}  {'ok' if not problems else '; '.join(problems)}")
    ctx.exit(DAMAGED if any(problems for parts in found.values() for problems in parts.values()) else 0)


def _facts(found: dict[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {"stage": found["stage"] or "?", "status": f"{found['status']} {found['since'] or ''}"}
    if found["error"]:
        facts["error"] = found["error"]
    if found["held_by"]:
        facts["running as"] = "process {pid} on {host}, since {started}".format(**found["held_by"])
    facts["step"] = found["step"]
    facts["starts"] = [f"{start['started']} on {start['host']}" for start in found["starts"]]
    if found["failures"]:
        facts["failures"] = f"{found['failures']} entries in failures.jsonl"
    return facts


def _checkpoint_row(checkpoint: dict[str, Any]) -> list[str]:
    step = f"step {checkpoint['step']}"
    if checkpoint["problem"]:
        return [step, checkpoint["problem"], "", "", "", ""]
    metric = checkpoint["metric"]
    return [
        step,
        f"{checkpoint['bytes'] / 2**20:,.1f}",
        _or_dash(checkpoint["ranks"]),
        _or_dash(checkpoint["attempt"]),
        "-" if metric is None else f"{metric:.4g}",
        _or_dash(checkpoint["written"]),
    ]


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _print(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
