"""Seconds are counted by monotonic clocks: a wall clock that jumps changes nothing."""

import ast
import itertools
import time
from pathlib import Path

import pytest

import rlhf_ray
from rlhf_ray.actors.engine_thread import EngineThread
from rlhf_ray.actors.supervision import RestartBudget
from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.errors import InfrastructureError

pytestmark = pytest.mark.unit

#: What other programs read needs the time of day.
STAMPS = {"tracking/mlflow.py", "tracking/tensorboard.py"}


@pytest.fixture
def jumping(monkeypatch):
    """A wall clock that leaps by years, back and forth."""
    leaps = itertools.cycle([0.0, 2e9, 1e9])
    monkeypatch.setattr(time, "time", lambda: next(leaps))


class Engine:
    def has_unfinished_requests(self) -> bool:
        return False


def test_health_answers_count_real_seconds(jumping):
    engine, owned = EngineThread(Engine), OwnedThread()
    assert engine.call(lambda engine: "answered", timeout_s=30) == "answered"
    assert owned.call("working", lambda: "answered") == "answered"
    for _ in range(3):
        assert 0 <= engine.status()["since_s"] < 60
        assert 0 <= owned.health()["since_s"] < 60


def test_a_restart_budget_does_not_expire_by_a_leap(jumping):
    budget = RestartBudget("generator", restarts=1, window_s=3600)
    budget.spend("lost")
    with pytest.raises(InfrastructureError, match="lost 2 times"):
        budget.spend("lost again")


def test_no_module_counts_seconds_by_the_wall_clock():
    package = Path(rlhf_ray.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) == ("time", "time")
    }
    assert found <= STAMPS
