"""Repeat an iteration of a PPO run and say whether it came out the same.

    rlhf-ray replay runs/ppo-1 --iteration 12

A replay is a run of its own: the trainer's loop, started from a checkpoint before the iteration and ended after it, in
a folder below `<run.root>/replays`. The two folders are then compared (`replay_report`). The run that is replayed is
only read.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.errors import DataError
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callback, Callbacks
from rlhf_ray.trainers.callbacks_builtin.console_report import ConsoleReport
from rlhf_ray.trainers.checkpoint import Checkpoint, Checkpoints, Sharded
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.ppo_actors import PPOActors
from rlhf_ray.trainers.recorded import recorded_rollouts
from rlhf_ray.trainers.replay_report import ReplayReport, compare_iteration
from rlhf_ray.trainers.results import PPOResult, read_metrics
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.session import Session

Source = Literal["rollouts", "prompts"]

#: Replays lie in this folder beside the run.
FOLDER = "replays"
#: What a replay leaves out: it is no run that anybody goes on with.
SETTINGS = (
    "evaluation.prompts=0",
    "evaluation.every=0",
    "checkpoint.best=false",
    "tracking.tensorboard=false",
    "tracking.wandb_project=null",
    "tracking.mlflow_experiment=null",
)


def replay_iteration(
    run: str | Path,
    iteration: int,
    source: Source = "rollouts",
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> ReplayReport:
    """Repeat iteration `iteration` of the run in folder `run`, and those between it and the checkpoint before it.

    Args:
        source: train on the recorded rollouts, which needs the learner alone; or sample and score anew.
        overrides: dotted keys of the configuration that are to be different from the run's.

    Raises:
        ConfigError: there is no run, or what it needs is gone.
        DataError: the run did not come that far, or its rollouts are gone.
    """
    recorded, console = RunFolder.open(run, "ppo"), console or Console()
    _check_recorded(recorded, iteration)
    name = f"{recorded.name}-{iteration}-{time.strftime('%Y%m%d-%H%M%S')}"
    place = (f"run.root={recorded.path.parent / FOLDER}", f"run.name={name}")
    config = load_config(PPOConfig, [recorded.config_file], [*place, *SETTINGS, *overrides])
    trainer = (TrainOnly if source == "rollouts" else ReplayTrainer)(config, recorded, iteration, console)
    if trainer.train().iterations < iteration:
        raise KeyboardInterrupt  # Ctrl-C, after which a run ends in good order
    first = trainer.session.resumed.step if trainer.session.resumed is not None else 0
    taken = source == "rollouts"
    reports = [compare_iteration(recorded, trainer.folder, n, taken) for n in range(first + 1, iteration + 1)]
    return ReplayReport(recorded.path, trainer.folder.path, source, first, config.run.exact, reports)


def _check_recorded(run: RunFolder, iteration: int) -> None:
    done = read_metrics(run.metrics_file) if run.metrics_file.is_file() else {}
    if iteration not in done:
        have = f"1 to {max(done)}" if done else "none"
        raise DataError(f"{run.path}: iteration {iteration} is not in {run.metrics_file.name} (it has {have})")


class RecordedCheckpoints(Checkpoints):
    """The checkpoints of the run that is replayed, up to step `last`, to be read only."""

    def __init__(self, run: RunFolder, last: int, config: PPOConfig, console: Console) -> None:
        super().__init__(run.checkpoints, config.checkpoint, console.warn)
        self._last = last

    def latest(self, up_to: int | None = None) -> Checkpoint | None:
        return super().latest(self._last)

    def write(self, step: int, state: dict[str, Any], learner: Sharded, metric: float | None = None) -> None:
        """Nothing: nobody goes on from a replay, and the folder is another run's."""


class ReplayTrainer(PPOTrainer):
    """The loop of a run over a few of its iterations: from the checkpoint before `last`, up to it."""

    def __init__(self, config: PPOConfig, recorded: RunFolder, last: int, console: Console) -> None:
        super().__init__(config, console=console)
        self.recorded, self.last = recorded, last
        self.callbacks = Callbacks([ConsoleReport(), StopAfter(last)])

    def _open_session(self) -> Session:
        session = super()._open_session()
        session.checkpoints = RecordedCheckpoints(self.recorded, self.last - 1, self.config, self.console)
        session.resumed = session.checkpoints.latest()
        if session.resumed is not None:
            session.extends = session.resumed.step  # a run that stopped there went further since
        if session.resumed is None and self.last > 1:
            self.console.note(f"no checkpoint before iteration {self.last}: repeating the run from its beginning")
        return session

    def _finish(self, result: PPOResult, actors: PPOActors) -> None:
        actors.finish_writing()


class TrainOnly(ReplayTrainer):
    """A replay that takes the samples, their scores and the reference's log-probs from the record."""

    def _start_actors(self, columns: list[str], total_steps: int, progress: Callable[..., None]) -> PPOActors:
        """The learner, which has the session's configuration, and the writer: nobody samples, scores or refers."""
        config = self.config
        nobody: dict[str, Any] = {
            "rewards": {},
            "generation": config.generation.model_copy(update={"replicas": 0}),
            "kl": config.kl.model_copy(update={"coef": 0.0}),
            "sync": config.sync.model_copy(update={"transport": "object_store"}),
        }
        return PPOActors(self.session, config.model_copy(update=nobody), columns, total_steps, progress)

    def _collect(self, prompts: pa.Table, iteration: int, actors: PPOActors) -> Rollouts:
        number = iteration + 1
        rounds = read_metrics(self.recorded.metrics_file)[number].get("samples/rounds", 1)
        return recorded_rollouts(self.recorded, number, int(rounds))


class StopAfter(Callback):
    """Ends the loop after iteration `last`."""

    def __init__(self, last: int) -> None:
        self._last = last

    def on_train_start(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_iteration_start(self, iteration: int) -> None:
        if iteration == self._last:
            self._trainer.request_stop(f"iteration {iteration} was the one to replay")
