"""metrics.jsonl: one JSON object per step, readable by pandas, polars, DuckDB and jq while the run goes on."""

import json
import math
import os
from pathlib import Path

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends `{"step": 3, "reward/mean": 0.41, ...}` per step, flushed at once. A value that is not finite is null."""

    def __init__(self, path: Path, resume_after: int | None = None) -> None:
        """Opens `path`; with `resume_after`, lines of later steps and a torn last line are taken out first."""
        if resume_after is not None and path.exists():
            _truncate(path, resume_after)
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        values = {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Take out the lines of later steps."""
        self._file.close()
        _truncate(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self, failed: bool = False) -> None:
        self._file.close()


def _truncate(path: Path, last_step: int) -> None:
    """Keep the lines up to `last_step`; written aside and renamed, so that a kill leaves one version or the other."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
    aside = path.with_suffix(".jsonl.partial")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
