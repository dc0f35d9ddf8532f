"""A run that loses learner ranks, or the places of its actors, goes back to its last checkpoint and on from there.

    Recovery(session, done=...).run(work)

`work(loss)` runs from the last checkpoint, or the beginning, to the end; `loss` says what is to be started again first.
The loops are functions of what a checkpoint holds, so the iterations since are repeated, not merely made up for: in
exact mode they give the same bits. All ranks of a learner end with one of them: the others wait in a collective call
for a peer that is gone. Stateless actors are none of this: their pools start them again, and the run never notices.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import ObjectLostError, RayTaskError

from rlhf_ray.actors.calls import cause_of_loss, find_lost
from rlhf_ray.actors.learner_group import dump_stacks
from rlhf_ray.errors import ActorLost, DeadlineError, InfrastructureError, ObjectLost, PlacementLost, RLHFRayError
from rlhf_ray.trainers.callbacks import CallbackError
from rlhf_ray.trainers.session import Session

T = TypeVar("T")

LEARNER, GROUP, PLACES = "learner", "learner/all", "placement/all"
#: What a rank says whose peer has died, before the cluster knows of the death: gloo, NCCL or the store they met at.
TORN = ("gloo", "NCCL", "TCPStore", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


@dataclass(frozen=True)
class Loss:
    """What a run cannot go on without. `everything`: all actors are to be placed and started anew."""

    actor: str
    cause: str
    everything: bool = False


class Recovery:
    """Runs a stage's work again after each loss, within the budget of learner restarts.

    `done()`: whole iterations so far, for messages.
    """

    def __init__(self, session: Session, done: Callable[[], int]) -> None:
        self._session, self._done = session, done
        self._lost: Loss | None = None
        self._lost_at = 0.0  # monotonic; of the first loss since the run last went on
        self._settled = False  # the run has gone on at least once

    def run(self, work: Callable[[Loss | None], T]) -> T:
        """The result of `work(None)`, or of `work(loss)` after the last loss.

        Raises:
            InfrastructureError: there were too many losses.
            Exception: what else `work` raises.
        """
        loss: Loss | None = None
        while True:
            try:
                return work(loss)
            except Exception as error:
                loss = self._find(error)
                if loss is None:
                    raise
                self._go_back(loss, error)

    def settled(self) -> None:
        """The run goes on; called by `work` when all that was lost works again."""
        self._settled = True
        if self._lost is not None:
            self._session.failures.recovered(actor=self._lost.actor, recovery_s=time.monotonic() - self._lost_at)
            self._lost = None

    def _go_back(self, loss: Loss, error: Exception) -> None:
        """Spend a restart, end what is left of the learner, find the checkpoint, and say so."""
        session, failures, phase = self._session, self._session.failures, self._phase()
        self._lost_at = self._lost_at if self._lost is not None else time.monotonic()
        self._lost = loss
        try:
            wait_s = session.supervision.budget(LEARNER).spend(f"{loss.actor} ({phase}): {loss.cause}")
        except InfrastructureError as spent:
            failures.record(actor=loss.actor, phase=phase, cause=loss.cause, action="no restart is left")
            raise InfrastructureError(f"{spent}\n{session.advice()}") from error
        session.end_learner()
        session.resumed = session.checkpoints.latest()
        failures.record(actor=loss.actor, phase=phase, cause=loss.cause, action=self._plan(loss))
        time.sleep(wait_s)

    def _plan(self, loss: Loss) -> str:
        resumed, failures = self._session.resumed, self._session.failures
        step = resumed.step if resumed is not None else 0
        what = "placing and starting all actors again" if loss.everything else "starting the learner again"
        return f"{what} from iteration {step + 1} (attempt {failures.attempt + 1}), {self._done() - step} to replay"

    def _phase(self) -> str:
        learner = self._session.learner
        return learner.doing if learner is not None else "start"

    # -- which errors are losses -------------------------------------------------------------------------------------

    def _find(self, error: Exception) -> Loss | None:
        """The loss behind an error; None for one that would come again: of data, configuration, or a program."""
        for cause in _causes(error):
            if isinstance(cause, PlacementLost):
                return Loss(PLACES, f"{cause}.", everything=True)
            if isinstance(cause, RLHFRayError) and not isinstance(cause, InfrastructureError | CallbackError):
                return None
        for name, why in find_lost(self._session.starter.of_kind(LEARNER)).items():
            return None if why.startswith("it could not start") else Loss(name, f"{name} was lost: {why}")
        for cause in _causes(error):
            if isinstance(cause, DeadlineError) and self._settled:
                return Loss(GROUP, f"{cause} {self._stacks()}")
            if isinstance(cause, ActorLost):
                return Loss(GROUP, cause_of_loss(cause))
            if isinstance(cause, ObjectLost | ObjectLostError):
                return Loss(GROUP, str(cause))
            if _is_torn(cause):
                return Loss(GROUP, f"a collective call failed: a rank hangs, or its node is gone. {self._stacks()}")
        return None

    def _stacks(self) -> str:
        path = dump_stacks(self._session.starter.of_kind(LEARNER), self._session.logs)
        return f"What the threads of all ranks were doing is in {path}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from; a chain may close on itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _is_torn(error: BaseException) -> bool:
    """Whether a rank's own code failed because of its peers."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in TORN)
