"""Several methods' learning curves in one plot: the mean over seeds and a band from the lowest to the highest."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

Curves = Mapping[str, Sequence[Sequence[float]]]  # method -> one curve [iterations] per seed

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
svg {{ max-width: 100%; height: auto }}
td, th {{ padding: 0.2rem 0.8rem; text-align: right }} td:first-child, th:first-child {{ text-align: left }}
</style></head><body><h1>{title}</h1>{plot}<table>{table}</table></body></html>
"""


def draw(curves: Curves, rows: Sequence[Mapping[str, Any]], path: Path, title: str = "Reward by estimator") -> None:
    """Write `path`.png and `path`.html; the page also holds `rows` (the same keys in each) as a table."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for name, seeds in curves.items():
        values, iterations = np.array(seeds), np.arange(1, len(seeds[0]) + 1)
        (line,) = axes.plot(iterations, values.mean(axis=0), label=name, linewidth=1.8)
        axes.fill_between(iterations, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.12)
    axes.set(title=title, xlabel="iteration", ylabel="mean reward of the iteration's samples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    save_page(figure, rows, path, title)


def save_page(figure: Any, rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write a figure as `path`.png and, above `rows` as a table, as `path`.html; closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    plt.close(figure)
    plot = svg.getvalue()[svg.getvalue().index("<svg") :]
    page = PAGE.format(title=html.escape(title), plot=plot, table=_table(rows))
    path.with_suffix(".html").write_text(page, encoding="utf-8")
    print(f"{path.with_suffix('.png')}, {path.with_suffix('.html')}")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["".join(f"<th>{html.escape(key)}</th>" for key in rows[0])]
    for row in rows:
        cells = (f"{value:,.3g}" if isinstance(value, float) else html.escape(str(value)) for value in row.values())
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "".join(f"<tr>{line}</tr>" for line in lines)
