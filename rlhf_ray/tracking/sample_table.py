"""Scored samples side by side: prompt | response | each component and the total."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_ray.tracking.format import fit, shorten

#: Lines of text per sample, unless its rewards take more.
MIN_LINES = 6
NUMBER_WIDTH = 7
INDENT, GAP = 2, 2


@dataclass(frozen=True)
class ScoredSample:
    """A response with its rewards; a value is None where a component did not apply, `failed` where its call did."""

    prompt: str
    response: str
    components: Mapping[str, float | str | None]
    total: float | None  # None: the sample was dropped


def render(console: Console, samples: Sequence[ScoredSample]) -> Table:
    """The samples for the width of `console`; long texts end with `…`, numbers are whole."""
    name_width = 14 if console.width < 100 else 24
    rewards_width = name_width + 1 + NUMBER_WIDTH
    texts_width = console.width - INDENT - rewards_width - 2 * GAP
    widths = (texts_width * 2 // 5, texts_width - texts_width * 2 // 5)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column("", width=INDENT - GAP)
    table.add_column("prompt", width=widths[0], style="cyan")
    table.add_column("response", width=widths[1])
    table.add_column("rewards", width=rewards_width, no_wrap=True)
    for sample in samples:
        rewards = _rewards(sample, name_width)
        height = max(MIN_LINES, len(rewards))
        texts = (sample.prompt, sample.response or "(empty)")
        cells = [_cut(console, text, width, height) for text, width in zip(texts, widths, strict=True)]
        table.add_row("", *cells, Text("\n").join(rewards))
        table.add_row()
    return table


def _rewards(sample: ScoredSample, name_width: int) -> list[Text]:
    total = "dropped" if sample.total is None else fit(sample.total, NUMBER_WIDTH, 3)
    rows = [Text(f"{'total':<{name_width}} {total:>{NUMBER_WIDTH}}", style="bold")]
    for name, value in sample.components.items():
        text = value if isinstance(value, str) else fit(value, NUMBER_WIDTH, 3)
        rows.append(Text(f"{shorten(name, name_width):<{name_width}} {text:>{NUMBER_WIDTH}}", style="dim"))
    return rows


def _cut(console: Console, text: str, width: int, height: int) -> Text:
    """The first `height` lines of `text` folded into `width`."""
    lines = list(Text(text.strip()).wrap(console, width, overflow="fold"))
    for line in lines:
        line.rstrip()
    if len(lines) > height:
        lines = lines[:height]
        lines[-1].truncate(width - 1)
        lines[-1] = Text.assemble(lines[-1], "…")
    return Text("\n").join(lines)
