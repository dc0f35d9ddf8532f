"""What every stage has in its checkpoints beside the learner, and the way back to one of them."""

from typing import Any

from rlhf_ray.data.order import moved
from rlhf_ray.tracking.tracker import BEGINNING
from rlhf_ray.trainers.callbacks import Callbacks, StopRequests
from rlhf_ray.trainers.session import Session


class Restorer:
    """Attempt, callbacks, trackers and the request to stop of one run.

    The attempt counts how often the run has gone back: 0 for one that never did, -1 before the first `restore`.
    """

    def __init__(self, session: Session, callbacks: Callbacks, trainer: StopRequests) -> None:
        self._session, self._callbacks, self._trainer = session, callbacks, trainer
        self._beginning = callbacks.state_dict()
        self.attempt = -1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        callbacks, stop_reason = self._callbacks.state_dict(), self._trainer.stop_reason
        return {"attempt": self.attempt, "callbacks": callbacks, "stop_reason": stop_reason}

    def restore(self) -> tuple[int, dict[str, Any]]:
        """Go to the session's checkpoint, or to the beginning: its step and its state, 0 and {} for the beginning."""
        again, resumed = self.attempt >= 0, self._session.resumed
        step, state = (resumed.step, resumed.state) if resumed is not None else (0, {})
        if again:
            self._session.trackers.rewind(step if resumed is not None else BEGINNING)
            self._callbacks.rewind(state.get("callbacks", self._beginning))
        else:
            self._callbacks.load_state_dict(state.get("callbacks", {}))
        self._trainer.stop_reason = None if step == self._session.extends else state.get("stop_reason")
        self.count_attempt(after=state.get("attempt", -1))
        return step, state

    def count_attempt(self, after: int = -1) -> None:
        """Another attempt begins, later than all before it."""
        self.attempt = self._session.failures.attempt = max(self.attempt, after) + 1

    def warn_if_moved(self, state: dict[str, Any], cursor: dict[str, int]) -> None:
        """The person should know where a resumed run finds other data than it left."""
        if "data" in state and (why := moved(state["data"], cursor)):
            self._session.warn(why)
