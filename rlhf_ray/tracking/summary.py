"""What a run achieved, on one screen: held-out rewards before and after, win rate, lengths, curve, paths."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhf_ray.tracking.format import fit, histogram, percent, quantile, sparkline


class Comparison(TypedDict, total=False):
    """Two policies on the same held-out prompts. Every key may be absent; what is absent is not shown."""

    labels: tuple[str, str]
    """Names of the two, e.g. ("SFT", "PPO"). Default: ("before", "after")."""
    rows: Mapping[str, tuple[float, float]]
    """Metric -> its mean before and after, in the order shown: the total reward first, then each component."""
    win_rate: float
    """Share of prompts, in [0, 1], on which the second policy's reward is the higher one (a tie counts half)."""
    distributions: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    """Quantity -> one value per response of each policy, e.g. "length (tokens)"."""
    curve: Sequence[float]
    """Mean reward of each training iteration."""
    best: tuple[int, float]
    """The iteration whose samples had the highest mean reward, and that reward."""
    facts: Mapping[str, object]
    """Anything else worth a line, e.g. {"held-out prompts": 128, "KL": "3.2 nats per response"}."""
    paths: Mapping[str, str | Path]
    """What lies where, e.g. {"policy": folder.policy}."""


def render(comparison: Comparison) -> RenderableType:
    """The summary as something rich can print at any width from 80 columns."""
    labels = comparison.get("labels", ("before", "after"))
    parts: list[RenderableType] = []
    if rows := comparison.get("rows"):
        parts += [_table(labels, rows)]
    if "win_rate" in comparison:
        line = Text.assemble(
            f"{labels[1]} beats {labels[0]} on ", (percent(comparison["win_rate"]), "bold"), " of the prompts"
        )
        parts += [Padding(line, (0, 2), expand=False), Text()]
    if distributions := comparison.get("distributions"):
        parts += [_distributions(labels, distributions), Text()]
    if curve := comparison.get("curve"):
        parts += [_curve(curve, comparison.get("best")), Text()]
    if facts := comparison.get("facts"):
        parts += [pairs(facts), Text()]
    if paths := comparison.get("paths"):
        parts += [pairs({name: nearby(path) for name, path in paths.items()}), Text()]
    return Group(*parts)


def pairs(facts: Mapping[str, object]) -> Table:
    """Names and values in two columns; a list takes a line per item."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        text = "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        grid.add_row(f"  {name}", Text(text))
    return grid


def nearby(path: str | Path) -> str:
    """A path as a person here would type it: relative where it lies below the working directory."""
    absolute = Path(path).absolute()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _table(labels: tuple[str, str], rows: Mapping[str, tuple[float, float]]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 2))
    table.add_column(" held-out prompts", min_width=24, overflow="fold")
    for title in (*labels, "change"):
        table.add_column(title, justify="right", no_wrap=True)
    for position, (name, (before, after)) in enumerate(rows.items()):
        change = after - before
        table.add_row(
            f" {name}",
            fit(before, 9, 3),
            fit(after, 9, 3),
            Text(f"{'+' if change >= 0 else ''}{fit(change, 9, 3)}", style="green" if change > 0 else ""),
            style="bold" if position == 0 else "",
        )
    return table


def _distributions(
    labels: tuple[str, str], distributions: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> RenderableType:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2))
    table.add_column("")
    for title in ("least", "5 %", "median", "95 %", "most"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, both in distributions.items():
        table.add_row(Text(f"  {name}", style="dim"))
        everything = [*both[0], *both[1]]
        for label, values in zip(labels, both, strict=True):
            if not values:
                continue
            ordered = sorted(values)
            quantiles = [fit(quantile(ordered, share), 7, 0) for share in (0.0, 0.05, 0.5, 0.95, 1.0)]
            table.add_row(f"    {label}", *quantiles, histogram(ordered, min(everything), max(everything)))
    return table


def _curve(curve: Sequence[float], best: tuple[int, float] | None) -> Text:
    first, last = fit(curve[0], 7, 3), fit(curve[-1], 7, 3)
    text = Text.assemble(("  reward by iteration  ", "dim"), first, " ", sparkline(curve, 40), " ", last)
    if best is not None:
        text.append(f"\n{'':23}best {fit(best[1], 7, 3)} in iteration {best[0]}, final {last}", style="dim")
    return text
