"""Budgets of restarts, and the log of what failed."""

import io
import json
from pathlib import Path

import pytest

from rlhf_ray.actors.supervision import RestartBudget, Supervision
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import InfrastructureError
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.failure_log import FailureLog

pytestmark = pytest.mark.unit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_restart_waits_longer_than_the_one_before() -> None:
    budget = RestartBudget("generator", 10, 100, Clock())
    assert [budget.spend("it died") for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_used_up_budget_names_its_causes() -> None:
    budget = RestartBudget("reward/quality", 2, 100, Clock())
    budget.spend("out of memory")
    budget.spend("segmentation fault")
    with pytest.raises(InfrastructureError, match=r"reward/quality was lost 3 times within 100 s") as caught:
        budget.spend("killed")
    lines = str(caught.value).splitlines()
    assert "resources.restarts allows 2" in lines[0]
    assert [line.strip() for line in lines[1:]] == ["out of memory", "segmentation fault", "killed"]


def test_restarts_count_within_the_window_only() -> None:
    clock = Clock()
    budget = RestartBudget("generator", 2, 100, clock)
    assert budget.spend("first") == 0
    clock.now = 60
    assert budget.spend("second") == 1
    clock.now = 120  # the first one is forgotten
    assert budget.used == 1
    assert budget.spend("third") == 1
    with pytest.raises(InfrastructureError, match="lost 3 times"):
        budget.spend("fourth")
    clock.now = 300
    assert budget.spend("fifth") == 0, "after a quiet window the first restart is immediate again"


def test_no_restarts_are_allowed_where_the_budget_is_zero() -> None:
    with pytest.raises(InfrastructureError, match="allows 0"):
        RestartBudget("learner", 0, 100).spend("it died")


def test_all_actors_of_a_kind_share_one_budget() -> None:
    supervision = Supervision(ResourcesSection(restarts=7, restart_window_s=5))
    assert supervision.budget("generator") is supervision.budget("generator")
    assert supervision.budget("generator") is not supervision.budget("reference")
    assert supervision.budget("generator").restarts == 7


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_failures_are_shown_written_and_counted(tmp_path: Path) -> None:
    out, path = io.StringIO(), tmp_path / "failures.jsonl"
    log = FailureLog(path, Console(out, width=200))
    log.iteration, log.attempt = 7, 1
    log.record(actor="generator/1", phase="generate", cause="It was killed.", action="starting it again")
    log.record(actor="reward/style", phase="score", cause="It raised.", action="sample dropped", kind="data")
    log.recovered(actor="generator/1", recovery_s=3.25)
    shown = out.getvalue()
    assert "generator/1 (generate): It was killed. Starting it again." in shown
    assert "generator/1 is back after 3.2 s" in shown
    first, second, third = read(path)
    time = first.pop("time")
    assert str(time).endswith("+00:00")
    assert first == {
        "kind": "infrastructure",
        "actor": "generator/1",
        "phase": "generate",
        "iteration": 7,
        "attempt": 1,
        "cause": "It was killed.",
        "action": "starting it again",
        "recovery_s": None,
    }
    assert second["kind"] == "data"
    assert (third["action"], third["recovery_s"]) == ("recovered", 3.25)
    counts = {"failures/data": 1, "failures/infrastructure": 1, "failures/restarts/generator": 1}
    assert log.metrics() == counts
    assert log.metrics() == {}, "counted from one call to the next; nothing happened, nothing is reported"


def test_a_later_log_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    for actor in ("learner/0", "driver/0"):
        FailureLog(path).record(actor=actor, phase="update", cause="gone", action="starting it again")
    assert [line["actor"] for line in read(path)] == ["learner/0", "driver/0"]
