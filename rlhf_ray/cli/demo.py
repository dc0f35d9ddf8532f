"""`rlhf-ray demo`: the whole of it, on text that every machine has."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
@click.option("--name", help="Folder of this demo below the root; default: demo and the start time.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--quick", is_flag=True, help="Much smaller and shorter: shows that it runs, not that it learns.")
def demo(root: Path, name: str | None, seed: int, quick: bool) -> None:
    """SFT, reward model and PPO on this machine, from nothing, in minutes.

    A tiny Llama learns to write docstrings from the signatures and docstrings of Python's standard library, a reward
    model learns to tell real ones from damaged ones, and PPO improves the policy under that reward and PEP 257's rules.
    """
    from rlhf_ray.trainers.demo import run_demo

    run_demo(root=root, name=name, seed=seed, quick=quick)
