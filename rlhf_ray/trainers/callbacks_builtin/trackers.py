"""Trackers from Python: the same ones that the section `tracking` of a configuration switches on, or your own."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from rlhf_ray.tracking.tracker import BEGINNING, Tracker
from rlhf_ray.trainers.callbacks import Callback, RunningTrainer


class TrackerCallback(Callback, ABC):
    """Gives every iteration's and evaluation's metrics to a tracker that lives as long as the run."""

    _tracker: Tracker | None = None
    _last_step: int | None = None

    @abstractmethod
    def open(self, trainer: RunningTrainer, resume_after: int | None) -> Tracker:
        """The tracker of this run; `resume_after` is the last step that a resumed run keeps, None in a new run."""

    def on_train_start(self, trainer: RunningTrainer) -> None:
        self._tracker = self.open(trainer, self._last_step)

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self._log(iteration, metrics)
        self._last_step = iteration

    def on_evaluation(self, iteration: int, evaluation: Any) -> None:
        self._log(iteration, evaluation.metrics())

    def on_train_end(self, result: Any) -> None:
        self._close()

    def on_exception(self, error: BaseException) -> None:
        self._close(failed=True)

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last_step = state["last_step"]
        if self._tracker is not None:  # the run goes back
            self._tracker.rewind(BEGINNING if self._last_step is None else self._last_step)

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        assert self._tracker is not None, "on_train_start comes first"
        self._tracker.log(step, metrics)

    def _close(self, failed: bool = False) -> None:
        if self._tracker is not None:
            self._tracker.close(failed)
            self._tracker = None


class WandbCallback(TrackerCallback):
    """A run in the Weights & Biases project `project`; see `rlhf_ray.tracking.wandb`."""

    def __init__(self, project: str) -> None:
        from rlhf_ray.tracking.wandb import import_wandb

        import_wandb()
        self.project = project

    def open(self, trainer: RunningTrainer, resume_after: int | None) -> Tracker:
        from rlhf_ray.tracking.wandb import WandbTracker

        return WandbTracker(self.project, trainer.folder.path, trainer.config)


class MLflowCallback(TrackerCallback):
    """A run in the MLflow experiment `experiment`; see `rlhf_ray.tracking.mlflow`."""

    def __init__(self, experiment: str, uri: str | None = None) -> None:
        from rlhf_ray.tracking.mlflow import import_mlflow

        import_mlflow()
        self.experiment, self.uri = experiment, uri

    def open(self, trainer: RunningTrainer, resume_after: int | None) -> Tracker:
        from rlhf_ray.tracking.mlflow import MLflowTracker

        return MLflowTracker(self.experiment, self.uri, trainer.folder.path, trainer.config)


class TensorBoardCallback(TrackerCallback):
    """TensorBoard events in `folder`, a place of your own: the run folder has them anyway."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def open(self, trainer: RunningTrainer, resume_after: int | None) -> Tracker:
        from rlhf_ray.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker(self.folder, resume_after)
