"""Runs on disk, for people: which there are, how each goes, what is in its folder, what is damaged."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.tracking.metrics_file import METRICS_FILE
from rlhf_ray.tracking.record import CONFIG_FILE, PIPELINE_CONFIG
from rlhf_ray.trainers.checkpoint import checkpoint_folders
from rlhf_ray.trainers.failure_log import FAILURES_FILE
from rlhf_ray.trainers.manifest import Damaged, Manifest, verify
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.run_lock import Holder, is_held
from rlhf_ray.trainers.run_record import RUN_FILE, RunRecord, status_of

TAIL_BYTES = 1 << 20  # in which the last line of a file is looked for


@dataclass(frozen=True)
class RunSummary:
    """A run on one line."""

    name: str
    folder: str
    stage: str | None  # None: a folder of format 0 does not say
    status: str
    since: str | None
    step: int  # of the last metrics
    checkpoint: int | None  # the newest one's step
    error: str | None


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint on one line; its manifest's word, not verified."""

    step: int
    bytes: int | None = None
    ranks: int | None = None
    attempt: int | None = None
    metric: float | None = None
    written: str | None = None
    problem: str | None = None  # of its manifest


def find_runs(root: Path) -> list[Path]:
    """The folders of all runs in `root`, oldest first, with those of pipelines' stages.

    Raises:
        ConfigError: there is no such folder.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give the folder of runs, or set run.root")
    folders = [path.parent for path in root.glob(f"*/{CONFIG_FILE}")]
    folders += [path for pipeline in root.glob(f"*/{PIPELINE_CONFIG}") for path in find_runs(pipeline.parent)]
    return sorted(folders, key=lambda folder: (folder / CONFIG_FILE).stat().st_mtime)


def summarise(folder: Path, root: Path) -> RunSummary:
    """The run in `folder`, named by its place below `root`."""
    checkpoints = list(checkpoint_folders(RunFolder(folder).checkpoints))
    name, newest = str(folder.relative_to(root)), checkpoints[-1] if checkpoints else None
    step = int(last_metrics(folder).get("step", 0))
    try:
        record, status = RunRecord.read(folder), status_of(folder)
    except (ConfigError, DataError) as error:
        return RunSummary(name, str(folder), None, "unreadable", None, step, newest, str(error))
    if record is None:
        return RunSummary(name, str(folder), None, status, None, step, newest, None)
    return RunSummary(name, str(folder), record.stage, status, record.since, step, newest, record.error)


def describe(folder: Path) -> dict[str, Any]:
    """All that is known of the run in `folder`, as JSON values."""
    run, holder = RunFolder.open(folder), is_held(folder)
    starts = json.loads(run.environment_file.read_text()) if run.environment_file.is_file() else []
    return {
        **asdict(summarise(run.path, run.path.parent)),
        "held_by": asdict(holder) if isinstance(holder, Holder) else None,
        "starts": [{key: start.get(key) for key in ("started", "host", "command")} for start in starts],
        "failures": sum(1 for _ in _lines(run.path / FAILURES_FILE)),
        "metrics": last_metrics(run.path),
        "checkpoints": [asdict(checkpoint) for checkpoint in checkpoints_of(run)],
    }


def checkpoints_of(run: RunFolder) -> list[CheckpointSummary]:
    """The checkpoints of a run, oldest first."""
    return [_checkpoint(step, folder) for step, folder in checkpoint_folders(run.checkpoints).items()]


def _checkpoint(step: int, folder: Path) -> CheckpointSummary:
    try:
        manifest = Manifest.read(folder)
    except (Damaged, ConfigError) as problem:
        return CheckpointSummary(step, problem=str(problem))
    return CheckpointSummary(step, manifest.bytes, manifest.ranks, manifest.attempt, manifest.metric, manifest.written)


def problems_of(folder: Path) -> dict[str, list[str]]:
    """Part of the run in `folder` -> what is damaged there; every byte of its checkpoints is read."""
    found: dict[str, list[str]] = {}
    try:
        run = RunFolder.open(folder)
    except DataError as error:
        run, found[RUN_FILE] = RunFolder(folder), [str(error)]
    found |= {path.name: _checkpoint_problems(path) for path in checkpoint_folders(run.checkpoints).values()}
    found[METRICS_FILE] = list(_line_problems(run.metrics_file))
    for path in (run.policy, run.best):
        if path.is_dir():
            found[path.name] = list(_model_problems(path))
    return found


def last_metrics(folder: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl."""
    for line in reversed(list(_lines(folder / METRICS_FILE))):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue
    return {}


def _lines(path: Path) -> Iterator[str]:
    """The lines at the end of a file; none where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
        yield from file.read().decode("utf-8", errors="replace").splitlines()


def _checkpoint_problems(folder: Path) -> list[str]:
    try:
        return verify(folder)
    except ConfigError as error:
        return [str(error)]


def _line_problems(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            json.loads(line)
        except ValueError as error:
            yield f"line {number} is no JSON ({error})"


def _model_problems(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "np"):
                pass
        except (OSError, SafetensorError) as error:
            yield f"{path.relative_to(folder)} is unreadable ({error})"
