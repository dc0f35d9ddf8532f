"""`rlhf-ray replay`: repeat an iteration of a run, and say whether it came out the same."""

import json
from pathlib import Path
from typing import Any

import click

DIFFERS = 1


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--iteration", type=click.IntRange(min=1), required=True, metavar="N", help="Which one; the first is 1.")
@click.option(
    "--from",
    "source",
    type=click.Choice(["rollouts", "prompts"]),
    default="rollouts",
    show_default=True,
    help="Train on the recorded rollouts, or sample and score anew from the prompts.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write the report there too.")
@click.pass_context
def replay(
    ctx: click.Context, run: Path, overrides: tuple[str, ...], iteration: int, source: Any, file: Path | None
) -> None:
    """Repeat an iteration of a PPO run, and say whether it came out the same, or where it first differs.

    \b
    rlhf-ray replay runs/ppo-1 --iteration 12
    rlhf-ray replay runs/ppo-1 --iteration 12 --from prompts
    rlhf-ray replay runs/ppo-1 --iteration 12 --json report.json learner.ranks=2

    Starts from the newest checkpoint before the iteration (or from the beginning) and repeats those in between too.
    Tokens, rewards, losses, metrics and the digests of the weights are compared bit by bit. The run is only read; the
    replay lies in `replays` beside it. Exit code 0: the same, 1: it differs.
    """
    from rlhf_ray.tracking.console import Console
    from rlhf_ray.trainers.replay import replay_iteration

    console = Console()
    report = replay_iteration(run, iteration, source, overrides, console)
    report.show(console)
    if file is not None:
        file.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if not report.same:
        ctx.exit(DIFFERS)
