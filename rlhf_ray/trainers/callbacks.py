"""Your own code at the joints of a run.

class StopWhenGood(Callback):
    def on_iteration_end(self, iteration, metrics): ...
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.errors import RLHFRayError


class Callback:
    """Override what you need. Hooks run in the driver, in the order in which the callbacks were given."""

    def on_train_start(self, trainer: Any) -> None:
        """Actors are up, nothing is trained yet."""

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        """An iteration (optimiser step, for SFT and reward models) is over and its metrics are logged."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is complete at `path`."""

    def on_train_end(self, result: Any) -> None:
        """The run is over and its policy saved."""


class Callbacks(Callback):
    """Several callbacks as one. One that raises ends the run with an error that names it."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)

    def on_train_start(self, trainer: Any) -> None:
        self._call("on_train_start", trainer)

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self._call("on_iteration_end", iteration, metrics)

    def on_checkpoint(self, path: Path) -> None:
        self._call("on_checkpoint", path)

    def on_train_end(self, result: Any) -> None:
        self._call("on_train_end", result)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(*arguments)
            except RLHFRayError:
                raise
            except Exception as error:
                where = f"{type(callback).__module__}.{type(callback).__qualname__}.{hook}"
                raise RLHFRayError(f"callback {where} raised {type(error).__name__}: {error}") from error
