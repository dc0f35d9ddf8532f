"""What a person sees: stages, facts, progress, one line per iteration, samples, a summary. Calm at 80 and 120 columns.

On a terminal there are colours and live progress bars; anywhere else (a log file, a Ray job's log) the same content
comes as plain lines, with sparse ones for progress.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Protocol, TypedDict

import rich.console
from rich import box
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlhf_ray.tracking import breakdown, iteration_line, sample_table, summary
from rlhf_ray.tracking.format import duration, fit, scientific
from rlhf_ray.tracking.sample_table import ScoredSample

#: Without a terminal: seconds between two lines about the same progress.
PLAIN_PROGRESS_S = 20.0
#: The titles above the iteration lines come again after so many.
HEADER_EVERY = 25


class Sample(TypedDict):
    """A prompt with the responses of one or more policies: label -> (text, reward or None)."""

    prompt: str
    responses: Mapping[str, tuple[str, float | None]]


class Advance(Protocol):
    """Tells a progress that `count` more units are done, and optionally what is going on."""

    def __call__(self, count: float = 1, note: str = "") -> None: ...


class Console:
    """Prints to standard output, or to `file`. `width` is for tests; `clock` counts seconds."""

    def __init__(
        self,
        file: IO[str] | None = None,
        width: int | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        out = file or sys.stdout
        if not (getattr(out, "encoding", None) or "utf-8").lower().startswith("utf") and hasattr(out, "reconfigure"):
            out.reconfigure(errors="replace")
        tty = out.isatty() if terminal is None else terminal
        if width is None and not tty:
            width = int(os.environ.get("COLUMNS") or 120)
        self._rich = rich.console.Console(
            file=file, width=width, force_terminal=terminal, highlight=False, soft_wrap=False, emoji=False, markup=False
        )
        self._clock = clock
        self._rows_since_header: int | None = None
        self._live: Progress | None = None

    @property
    def width(self) -> int:
        return self._rich.width

    def stage(self, title: str, subtitle: str = "") -> None:
        """A heading: what starts now, and a quiet word about it."""
        self._rows_since_header = None
        heading = Text.assemble((title, "bold"), ("  " + subtitle if subtitle else "", "dim"))
        heading.truncate(self.width - 4, overflow="ellipsis")
        self._rich.print()
        self._rich.print(Rule(heading, align="left", style="dim"))

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values, one per line; a list takes a line per item."""
        self._rich.print(summary.pairs(facts))

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows of text below their titles: names on the left, values on the right."""
        table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1))
        for number, title in enumerate(titles):
            table.add_column(f"  {title}" if number == 0 else title, justify="right" if number else "left")
        for name, *cells in rows:
            table.add_row(f"  {name}", *cells)
        self._rich.print(table)

    def note(self, text: str) -> None:
        """A quiet remark."""
        self._rich.print(Padding(Text(text, style="dim"), (0, 0, 0, 2), expand=False))

    def warn(self, text: str) -> None:
        """Something the person should know, though the run goes on."""
        self._rich.print(Padding(Text.assemble(("warning ", "bold yellow"), text), (0, 0, 0, 2), expand=False))

    def iteration(self, iteration: int, total: int | None, metrics: dict[str, float]) -> None:
        """One PPO iteration from its flat metrics, its reward components below; whatever is absent shows as `-`."""
        if self._rows_since_header is None or self._rows_since_header >= HEADER_EVERY:
            self._line(iteration_line.header(self.width))
            self._rows_since_header = 0
        self._rows_since_header += 1
        for line in iteration_line.row(self.width, iteration, total, metrics):
            self._line(line)
        for line in breakdown.lines(self.width, metrics):
            self._line(line)

    def rewards(self, iteration: int, metrics: dict[str, float]) -> None:
        """A table of all numbers of an iteration's reward components."""
        self._heading(f"rewards of iteration {iteration}")
        self._rich.print(breakdown.table(self.width, metrics))

    def sample_table(self, title: str, samples: Sequence[ScoredSample]) -> None:
        """Responses with the rewards of each component: prompt | response | rewards."""
        self._heading(title)
        self._rich.print(sample_table.render(self._rich, samples))

    def step(self, step: int, total: int | None, values: Mapping[str, float | str]) -> None:
        """One line of a stage that is not PPO: `40/120   loss 2.810   learning rate 1.2e-3`."""
        line = Text(f"  {f'{step}/{total}' if total else step:>9}")
        for name, value in values.items():
            text = value if isinstance(value, str) else _short(value)
            line.append(f"   {name} ", style="dim").append(text)
        self._line(line)

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Advance]:
        """A progress bar (a spinner without `total`) while the block runs; it is given what advances the bar."""
        if self._rich.is_terminal:
            with self._progress_bar(title, total) as advance:
                yield advance
        else:
            with self._plain_progress(title, total) as advance:
                yield advance

    def samples(self, rows: Sequence[Sample], title: str = "responses") -> None:
        """Prompts with what each policy answered and the reward it got."""
        self._heading(title)
        for sample in rows:
            self._rich.print()
            self._rich.print(Padding(Text(_one_block(sample["prompt"]), style="cyan"), (0, 2, 0, 2), expand=False))
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(justify="right", no_wrap=True)
            grid.add_column(overflow="fold")
            for label, (text, reward) in sample["responses"].items():
                grid.add_row(f"    {label}", "" if reward is None else fit(reward, 7, 2), Text(_one_block(text)))
            self._rich.print(grid)

    def summary(self, title: str, comparison: summary.Comparison) -> None:
        """The end of a run: see `Comparison` for what may be in it."""
        self.stage(title)
        self._rich.print(summary.render(comparison))

    def _heading(self, title: str) -> None:
        """A quiet title of what follows; the next iteration line gets its titles again."""
        self._rows_since_header = None
        self._rich.print()
        self._line(Text(f"  {title}", style="dim"))

    def _line(self, text: Text) -> None:
        self._rich.print(text, no_wrap=True, overflow="ellipsis", crop=True)

    @contextmanager
    def _progress_bar(self, title: str, total: float | None) -> Iterator[Advance]:
        outermost = self._live is None
        if self._live is None:
            self._live = Progress(
                SpinnerColumn(style="dim"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                Remaining(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=self._rich,
                transient=True,
            )
            self._live.start()
        live = self._live
        task = live.add_task(title, total=total, note="")

        def advance(count: float = 1, note: str = "") -> None:
            live.update(task, advance=count, note=note)

        try:
            yield advance
        finally:
            live.remove_task(task)
            if outermost:
                live.stop()
                self._live = None

    @contextmanager
    def _plain_progress(self, title: str, total: float | None) -> Iterator[Advance]:
        started = self._clock()
        last_line, done = started, 0.0

        def advance(count: float = 1, note: str = "") -> None:
            nonlocal last_line, done
            done += count
            now = self._clock()
            if now - last_line >= PLAIN_PROGRESS_S:
                last_line = now
                share = f"{done:,g} of {total:,g} ({done / total:.0%})" if total else f"{done:,g}"
                self.note(f"{title}: {share} after {duration(now - started)}{'  ' + note if note else ''}")

        yield advance
        if last_line > started:
            self.note(f"{title}: done in {duration(self._clock() - started)}")


def _short(value: float) -> str:
    """Four significant digits; very small and very large numbers in scientific notation."""
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return scientific(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _one_block(text: str) -> str:
    """Text without outer blank lines; an empty one is named."""
    return text.strip("\n") or "(empty)"
