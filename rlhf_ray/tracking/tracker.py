"""Where metrics go besides the console: one protocol, and the set of trackers that a configuration asks for."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import TrackingSection
from rlhf_ray.tracking.metrics_file import METRICS_FILE, MetricsFile

TENSORBOARD_FOLDER = "tensorboard"
#: Files of a run folder by which W&B and MLflow find the run that a resumed one goes on in.
ID_FILES = ("wandb_run_id", "mlflow_run_id")
#: Before all that is logged: the evaluation of the start is of step 0.
BEGINNING = -1


class Tracker(Protocol):
    """Keeps the metrics of a run. `step` is the iteration (PPO) or optimiser step (other stages)."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def rewind(self, step: int) -> None:
        """The run goes back to where it was after `step`: what was logged of later steps will be logged again."""

    def close(self, failed: bool = False) -> None:
        """The run is over; `failed`: by an error, so that it will be resumed or given up."""


class Trackers:
    """The metrics file, and services beside it. An error of the file ends the run; one of a service is a warning."""

    def __init__(self, file: MetricsFile, services: Sequence[Tracker], warn: Callable[[str], object]) -> None:
        self._file, self._services, self._warn = file, list(services), warn
        self._failing: set[Tracker] = set()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._file.log(step, metrics)
        for service in self._services:
            self._attempt(service, f"step {step}", partial(service.log, step, metrics))

    def sync(self) -> None:
        """Have what the file was given on disk when this returns."""
        self._file.sync()

    def rewind(self, step: int) -> None:
        self._file.rewind(step)
        for service in self._services:
            self._attempt(service, f"the return to step {step}", partial(service.rewind, step))

    def close(self, failed: bool = False) -> None:
        self._file.close(failed)
        for service in self._services:
            self._attempt(service, "the end of the run", partial(service.close, failed))

    def _attempt(self, service: Tracker, what: str, action: Callable[[], None]) -> None:
        """A service may be down for a while: it is tried every time, and the person told once each time it fails."""
        try:
            action()
            self._failing.discard(service)
        except Exception as error:
            if service not in self._failing:
                name = type(service).__name__.removesuffix("Tracker")
                self._warn(f"{name} did not take {what} ({type(error).__name__}: {error}); {METRICS_FILE} has it")
            self._failing.add(service)


def tracker_ids(folder: Path) -> dict[str, str]:
    """File -> id, of the services that the run in `folder` logs to: for its checkpoints."""
    return {name: (folder / name).read_text().strip() for name in ID_FILES if (folder / name).exists()}


def restore_tracker_ids(folder: Path, ids: Mapping[str, str]) -> None:
    """Put back what `tracker_ids` found, where the file is gone."""
    for name in ID_FILES:
        if name in ids and not (folder / name).exists():
            (folder / name).write_text(ids[name])


def make_trackers(
    section: TrackingSection,
    folder: Path,
    config: Section,
    resume_after: int | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Trackers:
    """The trackers of a run in `folder`: always the metrics file, the others as configured.

    Args:
        config: the resolved configuration, shown by the services that keep one.
        resume_after: the last step that the resumed checkpoint includes, BEGINNING without one; what was logged after
            it is taken back, and W&B and MLflow go on in the run they had. None: a new run.
        warn: hears of trackers that fail while the run goes on.

    Raises:
        ConfigError: a tracker is asked for whose package is not installed.
    """
    trackers: list[Tracker] = []
    if section.wandb_project:
        from rlhf_ray.tracking.wandb import WandbTracker

        trackers.append(WandbTracker(section.wandb_project, folder, config))
    if section.mlflow_experiment:
        from rlhf_ray.tracking.mlflow import MLflowTracker

        trackers.append(MLflowTracker(section.mlflow_experiment, section.mlflow_uri, folder, config))
    if section.tensorboard:
        from rlhf_ray.tracking.tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(folder / TENSORBOARD_FOLDER, resume_after))
    return Trackers(MetricsFile(folder / METRICS_FILE, resume_after), trackers, warn)
