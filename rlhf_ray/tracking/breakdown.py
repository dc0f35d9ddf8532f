"""Where a reward comes from, on the console: every component's mean under each iteration, all its numbers in a table.

Read from the flat metrics of an iteration (`reward/<component>/mean`, ...), so that a metrics file can be shown too.
"""

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from rlhf_ray.tracking.format import fit, shorten
from rlhf_ray.tracking.iteration_line import INDENT, Metrics

#: Every component has this one, whether it applied to any sample or not.
_COMPONENT = re.compile(r"reward/(.+)/applied")
NAME_WIDTH = 24
WIDE_NAME_WIDTH = 50


def component_names(metrics: Metrics) -> list[str]:
    """The components, and as `component/key` the keys of those that return dicts, in the metrics' order."""
    return [match[1] for key in metrics if (match := _COMPONENT.fullmatch(key))]


def lines(width: int, metrics: Metrics) -> list[Text]:
    """Every component's mean on as few lines as it takes; nothing where a single component is the reward."""
    names = [name for name in component_names(metrics) if "/" not in name]
    if len(names) < 2:
        return []
    return _pack([_item(name, metrics) for name in names], width, "rewards: ")


def table(width: int, metrics: Metrics) -> Table:
    """One row per component and key: its own values, what it adds to the reward, where it has no value."""
    grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("  component", no_wrap=True)
    for title in ("mean", "±std", "min", "max", "adds"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    name_width = NAME_WIDTH if width < 100 else WIDE_NAME_WIDTH
    for name in component_names(metrics):
        component, _, key = name.partition("/")
        label = f"    {shorten(key, name_width - 4)}" if key else f"  {shorten(component, name_width - 2)}"
        numbers = [fit(metrics.get(f"reward/{name}/{what}"), 7, 3) for what in ("mean", "std", "min", "max")]
        adds = metrics.get(f"reward/{name}/contribution")
        grid.add_row(label, *numbers, "" if key else _signed(adds), _gaps(name, metrics), style="dim" if key else "")
    return grid


def _item(name: str, metrics: Metrics) -> Text:
    value = fit(metrics.get(f"reward/{name}/mean"), 7, 3)
    item = Text.assemble((f"{shorten(name, NAME_WIDTH)} ", "dim"), value)
    if failed := metrics.get(f"reward/{name}/failed"):
        item.append(f" ({failed:.0f} failed)", style="yellow")
    return item


def _pack(items: Sequence[Text], width: int, title: str) -> list[Text]:
    """Whole items side by side, two spaces apart; a line that is full continues below the first item."""
    rows = [Text(" " * INDENT + title, style="dim")]
    for item in items:
        if rows[-1].cell_len + item.cell_len > width and rows[-1].cell_len > INDENT + len(title):
            rows.append(Text(" " * (INDENT + len(title))))
        rows[-1] = Text.assemble(rows[-1], item, "  ")
    for row in rows:
        row.rstrip()
    return rows


def _gaps(name: str, metrics: Metrics) -> str:
    """`3 n/a, 2 failed, 5 gated`; empty where every sample counts."""
    counts = {"n/a": "did_not_apply", "failed": "failed", "gated": "shut"}
    found = {word: metrics.get(f"reward/{name}/{key}", 0.0) for word, key in counts.items()}
    return ", ".join(f"{count:,.0f} {word}" for word, count in found.items() if count)


def _signed(value: float | None) -> str:
    return ("+" if value is not None and value >= 0 else "") + fit(value, 7, 3)
