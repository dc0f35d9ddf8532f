"""Several quantities over the same iterations, one panel each, as a picture and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curves import plt, save_page


@dataclass(frozen=True)
class Panel:
    """One quantity: its name and unit, and whose -> a value per iteration, where there is one."""

    title: str
    curves: Mapping[str, Sequence[float | None]]


def draw_panels(panels: Sequence[Panel], rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write `path`.png and `path`.html; the page also holds `rows` (the same keys in each) as a table."""
    figure, places = plt.subplots(len(panels), 1, figsize=(10, 4 * len(panels)), sharex=True, layout="constrained")
    for panel, axes in zip(panels, places, strict=True):
        for name, values in panel.curves.items():
            axes.plot(values, label=name, linewidth=1.2)
        axes.set(ylabel=panel.title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    places[0].set(title=title)
    places[-1].set(xlabel="iterations run")
    save_page(figure, rows, path, title)
