"""metrics.jsonl: one JSON object per step, readable by pandas, polars, DuckDB and jq while the run goes on."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_ray.files import disk_errors

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends `{"step": 3, "reward/mean": 0.41, ...}` per step, flushed at once. A value that is not finite is null."""

    def __init__(self, path: Path, resume_after: int | None = None) -> None:
        """Opens `path`; with `resume_after`, lines of later steps and a torn last line are taken out first."""
        self._path, self._went_back_to = path, resume_after
        if resume_after is not None and path.exists():
            _keep(path, lambda line: line["step"] <= resume_after)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line.

        Raises:
            InfrastructureError: it cannot be written; DiskFull, if there is no room.
        """
        values = {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        if step == self._went_back_to:  # the end is evaluated after its checkpoint, and again by who resumes from that
            self._rewrite(lambda line: line.keys() != {"step", *values} or line["step"] != step)
        with disk_errors(METRICS_FILE, self._path.parent):
            self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Have all lines on disk when this returns, for a checkpoint that follows them. Raises as `log`."""
        with disk_errors(METRICS_FILE, self._path.parent):
            os.fsync(self._file.fileno())

    def rewind(self, step: int) -> None:
        """Take out the lines of later steps."""
        self._went_back_to = step
        self._rewrite(lambda line: line["step"] <= step)

    def close(self, failed: bool = False) -> None:
        with disk_errors(METRICS_FILE, self._path.parent):  # it tries again to write what could not be written
            self._file.close()

    def _rewrite(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        self._file.close()
        _keep(self._path, wanted)
        self._file = self._path.open("a", encoding="utf-8")


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keep the whole lines that are wanted; written aside and renamed: a kill leaves one version or the other."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and wanted(json.loads(line))]
    aside = path.with_suffix(".jsonl.partial")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
