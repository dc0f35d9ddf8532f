"""Where metrics go besides the console: one protocol, and the set of trackers that a configuration asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import TrackingSection
from rlhf_ray.tracking.metrics_file import METRICS_FILE, MetricsFile

TENSORBOARD_FOLDER = "tensorboard"


class Tracker(Protocol):
    """Keeps the metrics of a run. `step` is the iteration (PPO) or optimiser step (other stages)."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def make_trackers(section: TrackingSection, folder: Path, config: Section, resume_after: int | None = None) -> Trackers:
    """The trackers of a run in `folder`: always the metrics file, the others as configured.

    Args:
        config: the resolved configuration, shown by the services that keep one.
        resume_after: the last step that the resumed checkpoint includes; what was logged after it is taken back, and
            W&B and MLflow go on in the run they had. None: a new run.

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
    return Trackers([MetricsFile(folder / METRICS_FILE, resume_after), *trackers])
