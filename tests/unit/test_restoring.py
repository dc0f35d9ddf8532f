"""Back to a checkpoint: attempts count on, and a stop that was asked for holds unless the run is to go further."""

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.trainers.callbacks import Callback, Callbacks, StopRequests
from rlhf_ray.trainers.restoring import Restorer

pytestmark = pytest.mark.unit


class Counter(Callback):
    """Has state from the beginning."""

    count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Run:
    """A session that resumes from `resumed`, its trainer with one callback, and their restorer."""

    def __init__(self, resumed: Any = None, extends: int | None = None) -> None:
        self.rewound: list[int] = []
        self.session: Any = SimpleNamespace(
            resumed=resumed,
            extends=extends,
            failures=SimpleNamespace(attempt=0),
            trackers=SimpleNamespace(rewind=self.rewound.append),
        )
        self.trainer, self.counter = StopRequests(), Counter()
        self.restorer = Restorer(self.session, Callbacks([self.counter]), self.trainer)

    def checkpoint(self, step: int) -> Any:
        """What the run writes after `step`."""
        return SimpleNamespace(step=step, state=self.restorer.state())


def test_a_new_run_begins_and_goes_back_to_its_beginning() -> None:
    run = Run()
    assert run.restorer.restore() == (0, {})
    assert (run.restorer.attempt, run.rewound) == (0, [])
    run.counter.count = 3
    assert run.restorer.restore() == (0, {})
    assert (run.restorer.attempt, run.rewound, run.counter.count) == (
        1,
        [-1],
        0,
    )  # the evaluation of the start is repeated too
    assert run.session.failures.attempt == 1


def test_attempts_go_on_from_those_of_the_checkpoint_and_never_back() -> None:
    run = Run()
    run.restorer.restore()
    run.session.resumed = run.checkpoint(2)
    for attempt in (1, 2):  # twice to the same checkpoint
        run.restorer.restore()
        assert run.restorer.attempt == attempt
    resumed = Run(run.checkpoint(4))
    resumed.restorer.restore()
    assert (resumed.restorer.attempt, resumed.rewound) == (3, [])


def test_a_stop_that_was_asked_for_after_the_checkpoint_is_forgotten() -> None:
    run = Run()
    run.restorer.restore()
    run.session.resumed = run.checkpoint(2)
    run.trainer.request_stop("good enough")
    run.restorer.restore()
    assert run.trainer.stop_reason is None


@pytest.mark.parametrize(("extends", "reason"), [(None, "good enough"), (3, "good enough"), (5, None)])
def test_a_stop_holds_when_the_driver_died_on_the_way_out_but_not_when_the_run_goes_further(
    extends: int | None, reason: str | None
) -> None:
    before = Run()
    before.restorer.restore()
    before.trainer.request_stop("good enough")
    run = Run(before.checkpoint(5), extends)
    run.restorer.restore()
    assert run.trainer.stop_reason == reason
    run.restorer.restore()  # after a loss, before the next checkpoint
    assert run.trainer.stop_reason == reason
    assert run.rewound == [5]
