"""Which errors send a run back to its checkpoint, how often, and what is said and done about it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import (
    ActorLost,
    AuditError,
    ConfigError,
    DataError,
    DeadlineError,
    InfrastructureError,
    ObjectLost,
    PlacementLost,
)
from rlhf_ray.trainers import recovery
from rlhf_ray.trainers.callbacks import CallbackError
from rlhf_ray.trainers.failure_log import FailureLog
from rlhf_ray.trainers.recovery import Loss, Recovery

pytestmark = pytest.mark.unit


class FakeSession:
    """A session of two ranks with a checkpoint after step 3."""

    def __init__(self, folder: Path, restarts: int = 5) -> None:
        self.logs, self.failures = folder, FailureLog(folder / "failures.jsonl")
        self.supervision = Supervision(ResourcesSection(restarts=restarts))
        self.checkpoints = SimpleNamespace(latest=lambda: SimpleNamespace(step=3))
        self.starter = SimpleNamespace(of_kind=lambda kind: {f"{kind}/0": None, f"{kind}/1": None})
        self.learner = SimpleNamespace(doing="train_ppo")
        self.resumed: Any = None
        self.ended = 0

    def end_learner(self) -> None:
        self.ended += 1

    def advice(self) -> str:
        return "--resume goes on."


class Dead:
    """Stands for what the cluster says about the ranks."""

    def __init__(self) -> None:
        self.lost: dict[str, str] = {}

    def __call__(self, actors: dict[str, Any]) -> dict[str, str]:
        assert list(actors) == ["learner/0", "learner/1"]
        return self.lost


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Dead:
    dead = Dead()
    monkeypatch.setattr(recovery, "find_lost", dead)
    monkeypatch.setattr(recovery, "dump_stacks", lambda ranks, folder: folder / "stacks.txt")
    monkeypatch.setattr(recovery.time, "sleep", lambda seconds: None)
    return dead


class Work:
    """Raises the given errors, one per call, and then succeeds; remembers with which loss it was called."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.losses = list(errors), list[Loss | None]()

    def __call__(self, loss: Loss | None) -> str:
        self.losses.append(loss)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def its_own_cause(error: Exception) -> Exception:
    return caused(error, error)


def test_a_dead_rank_sends_the_run_back_to_its_checkpoint(tmp_path: Path, dead: Dead) -> None:
    session, work = FakeSession(tmp_path), Work(RuntimeError("some collective call"))
    dead.lost = {"learner/1": "it was killed."}
    assert Recovery(session, lambda: 5).run(work) == "done"  # type: ignore[arg-type]
    assert work.losses == [None, Loss("learner/1", "learner/1 was lost: it was killed.")]
    assert session.ended == 1
    assert session.resumed.step == 3
    record = session.failures.path.read_text()  # type: ignore[union-attr]
    assert '"actor": "learner/1", "phase": "train_ppo"' in record
    assert '"action": "starting the learner again from iteration 4 (attempt 1), 2 to replay"' in record


@pytest.mark.parametrize(
    ("error", "actor", "everything"),
    [
        (ActorLost("learner/0 was lost"), "learner/all", False),
        (ObjectLost("gone with its node"), "learner/all", False),
        (PlacementLost("no room"), "placement/all", True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "learner/all", False),
        (caused(CallbackError("export failed"), ActorLost("learner/0 was lost")), "learner/all", False),
    ],
)
def test_losses(tmp_path: Path, dead: Dead, error: Exception, actor: str, everything: bool) -> None:
    work = Work(error)
    Recovery(FakeSession(tmp_path), lambda: 3).run(work)  # type: ignore[arg-type]
    assert work.losses[1] is not None
    assert (work.losses[1].actor, work.losses[1].everything) == (actor, everything)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a key"),
        DataError("NaN"),
        AuditError("stale"),
        InfrastructureError("generator was lost 6 times"),
        RuntimeError("a bug"),
        caused(CallbackError("yours"), ValueError("a bug")),
        DeadlineError("nothing ever loaded"),
        its_own_cause(RuntimeError("what Ray could not pickle")),
    ],
)
def test_errors_that_would_come_again_end_the_run(tmp_path: Path, dead: Dead, error: Exception) -> None:
    work = Work(error)
    with pytest.raises(type(error), match=str(error)):
        Recovery(FakeSession(tmp_path), lambda: 3).run(work)  # type: ignore[arg-type]
    assert work.losses == [None]


def test_an_error_of_the_data_ends_the_run_whoever_died_of_it(tmp_path: Path, dead: Dead) -> None:
    dead.lost = {"learner/0": "it was killed."}
    with pytest.raises(DataError):
        Recovery(FakeSession(tmp_path), lambda: 3).run(Work(DataError("NaN")))  # type: ignore[arg-type]


def test_a_rank_that_cannot_start_ends_the_run(tmp_path: Path, dead: Dead) -> None:
    dead.lost = {"learner/0": "it could not start: no such model"}
    with pytest.raises(ActorLost):
        Recovery(FakeSession(tmp_path), lambda: 0).run(Work(ActorLost("lost")))  # type: ignore[arg-type]


def test_a_hung_learner_is_a_lost_one_once_the_run_has_gone_on(tmp_path: Path, dead: Dead) -> None:
    session = FakeSession(tmp_path)
    run = Recovery(session, lambda: 3)  # type: ignore[arg-type]
    errors: list[Exception] = [DeadlineError("waited 5 s for learner/0.")]

    def work(loss: Loss | None) -> Loss | None:
        run.settled()
        if errors:
            raise errors.pop()
        return loss

    loss = run.run(work)
    assert loss is not None
    assert (
        f"waited 5 s for learner/0. What the threads of all ranks were doing is in {tmp_path}/stacks.txt" in loss.cause
    )


def test_losses_during_a_recovery_count_too_until_none_is_left(tmp_path: Path, dead: Dead) -> None:
    session, work = FakeSession(tmp_path, restarts=2), Work(*[ActorLost(f"loss {n}") for n in range(3)])
    with pytest.raises(InfrastructureError, match=r"(?s)learner was lost 3 times.*loss 0.*loss 2.*--resume goes on"):
        Recovery(session, lambda: 3).run(work)  # type: ignore[arg-type]
    assert len(work.losses) == 3
    assert "no restart is left" in session.failures.path.read_text().splitlines()[-1]  # type: ignore[union-attr]


def test_the_recovery_is_reported_once(tmp_path: Path, dead: Dead) -> None:
    session = FakeSession(tmp_path)
    run = Recovery(session, lambda: 3)  # type: ignore[arg-type]
    errors = [ActorLost("first"), ActorLost("second")]

    def work(loss: Loss | None) -> None:
        if errors:
            raise errors.pop(0)
        run.settled()
        run.settled()

    run.run(work)
    lines = session.failures.path.read_text().splitlines()  # type: ignore[union-attr]
    assert [("recovered" in line) for line in lines] == [False, False, True]
    assert session.failures.metrics() == {"failures/infrastructure": 2.0, "failures/restarts/learner": 1.0}
