"""`rlhf-ray doctor`: what this machine has, what is missing, and how to get it."""

import click

from rlhf_ray.errors import RLHFRayError


@click.command()
@click.option("--address", help="Ray cluster to reach; default: $RAY_ADDRESS, else a local Ray is started and stopped.")
@click.option("--timeout", type=click.FloatRange(min=1), default=120.0, show_default=True, help="Seconds per check.")
def doctor(address: str | None, timeout: float) -> None:
    """Check this machine: versions, devices, memory, Ray, vLLM. Exit code 1 when something essential is missing."""
    from rich.console import Console
    from rich.table import Table

    from rlhf_ray.cli.checks import Level, run_checks

    marks = {Level.GOOD: "[green]ok[/]", Level.WARNING: "[yellow]![/]", Level.MISSING: "[red]missing[/]"}
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    console = Console(highlight=False)
    with console.status("importing torch, Ray and vLLM, starting Ray"):
        checks = run_checks(address, timeout)
    for check in checks:
        grid.add_row(
            marks[check.level], check.name, check.found + (f"\n[dim]{check.advice}[/]" if check.advice else "")
        )
    console.print(grid)
    missing = [check.name for check in checks if check.level is Level.MISSING]
    if missing:
        raise RLHFRayError(f"missing: {', '.join(missing)}")
