"""Your own code at the joints of a run.

class StopWhenGood(Callback):
    def on_train_start(self, trainer):
        self.trainer = trainer

    def on_iteration_end(self, iteration, metrics):
        if metrics["reward/mean"] > 0.9:
            self.trainer.request_stop(f"mean reward {metrics['reward/mean']:.2f}")

PPOTrainer(config, callbacks=[StopWhenGood()]).train()

One iteration calls, in this order: on_iteration_start, on_generation, on_reward, (training, weight sync) on_update,
on_iteration_end, and where due on_evaluation and on_checkpoint. Iterations count from 1. A run that goes back to a
checkpoint calls `load_state_dict`, and the hooks of the iterations that it repeats once more with the same numbers.
Ready-made callbacks are in `rlhf_ray.trainers.callbacks_builtin`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.config.base import Section
from rlhf_ray.errors import RLHFRayError
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.run_folder import RunFolder


class StopRequests:
    """A trainer's ear for callbacks that want the run to end. The iteration in hand is finished and saved first."""

    stop_reason: str | None = None

    def request_stop(self, why: str) -> None:
        """End the run after this iteration; `why` is shown and put into the result. The first reason stays."""
        if self.stop_reason is None:
            self.stop_reason = why


class RunningTrainer(Protocol):
    """What the trainer given to `on_train_start` offers to callbacks while it runs."""

    config: Section
    console: Console
    folder: RunFolder
    total_iterations: int

    def request_stop(self, why: str) -> None: ...

    def export_policy(self, folder: Path) -> None:
        """Save the policy that the learner holds now as a Hugging Face folder."""


class Callback:
    """Override what you need. Hooks run in the driver, in the order in which the callbacks were given."""

    def on_train_start(self, trainer: Any) -> None:
        """Actors are up, nothing is trained yet. `trainer` is a `RunningTrainer`."""

    def on_iteration_start(self, iteration: int) -> None:
        """The iteration begins; nothing is sampled yet."""

    def on_generation(self, iteration: int, rollouts: Any) -> None:
        """All responses are sampled, and scored (scoring runs beside the sampling): a `Rollouts`."""

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        """Every sample has its reward (a `Composed`). The learner still holds the policy that sampled them."""

    def on_update(self, iteration: int, metrics: dict[str, float]) -> None:
        """The learner has trained on the samples and the generators hold the new weights; metrics of the training."""

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        """An iteration (optimiser step, for SFT and reward models) is over and its metrics are logged."""

    def on_evaluation(self, iteration: int, evaluation: Any) -> None:
        """The policy after `iteration` (0: the start) was evaluated on held-out prompts: an `Evaluation`."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is complete at `path`."""

    def on_train_end(self, result: Any) -> None:
        """The run is over and its policy saved."""

    def on_exception(self, error: BaseException) -> None:
        """The run ends by `error`, which is raised afterwards. `on_train_end` will not be called."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of this callback; JSON values only. Written into every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`: called before `on_train_start` of a resumed run, and again in the middle of a run that
        goes back to a checkpoint because it lost a learner rank or a node. `{}` is what you returned as `{}`.
        """


class CallbackError(RLHFRayError):
    """A callback raised; the message names it. Has the exit code of the error it raised."""

    def __init__(self, message: str, exit_code: int = RLHFRayError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Callbacks(Callback):
    """Several callbacks as one. One that raises ends the run with a CallbackError that names it."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)

    def on_train_start(self, trainer: Any) -> None:
        self._call("on_train_start", trainer)

    def on_iteration_start(self, iteration: int) -> None:
        self._call("on_iteration_start", iteration)

    def on_generation(self, iteration: int, rollouts: Any) -> None:
        self._call("on_generation", iteration, rollouts)

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        self._call("on_reward", iteration, rollouts, composed)

    def on_update(self, iteration: int, metrics: dict[str, float]) -> None:
        self._call("on_update", iteration, metrics)

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self._call("on_iteration_end", iteration, metrics)

    def on_evaluation(self, iteration: int, evaluation: Any) -> None:
        self._call("on_evaluation", iteration, evaluation)

    def on_checkpoint(self, path: Path) -> None:
        self._call("on_checkpoint", path)

    def on_train_end(self, result: Any) -> None:
        self._call("on_train_end", result)

    def on_exception(self, error: BaseException) -> None:
        """Every callback hears of `error`; one that raises meanwhile is noted on it instead of hiding it."""
        for callback in self._callbacks:
            try:
                callback.on_exception(error)
            except Exception as second:
                error.add_note(_describe(callback, "on_exception", second))

    def state_dict(self) -> dict[str, Any]:
        """The callbacks' states by position and class, without empty ones."""
        states = {key: _run(callback, "state_dict") for key, callback in self._keyed().items()}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each callback gets what one of its class left at the same place among its class; others are left alone."""
        for key, callback in self._keyed().items():
            if key in state:
                _run(callback, "load_state_dict", state[key])

    def rewind(self, state: dict[str, Any]) -> None:
        """As `load_state_dict`, in the middle of a run: what left no state then, and has some now, is given `{}`."""
        for key, callback in self._keyed().items():
            if key in state or _run(callback, "state_dict"):
                _run(callback, "load_state_dict", state.get(key, {}))

    def _keyed(self) -> dict[str, Callback]:
        """`KLEarlyStop/0`, `KLEarlyStop/1`, ...: a callback added or removed does not mix up the others."""
        keyed: dict[str, Callback] = {}
        for callback in self._callbacks:
            name = type(callback).__qualname__
            keyed[f"{name}/{sum(key.rsplit('/', 1)[0] == name for key in keyed)}"] = callback
        return keyed

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            _run(callback, hook, *arguments)


def _run(callback: Callback, hook: str, *arguments: Any) -> Any:
    try:
        return getattr(callback, hook)(*arguments)
    except Exception as error:
        exit_code = error.exit_code if isinstance(error, RLHFRayError) else RLHFRayError.exit_code
        raise CallbackError(_describe(callback, hook, error), exit_code) from error


def _describe(callback: Callback, hook: str, error: Exception) -> str:
    where = f"{type(callback).__module__}.{type(callback).__qualname__}.{hook}"
    return f"callback {where} raised {type(error).__name__}: {error}"
