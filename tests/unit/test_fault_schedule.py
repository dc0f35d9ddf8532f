"""Faults at chosen iterations: which visits they hit, and how a long run's are drawn."""

import os
from pathlib import Path

import pytest

from rlhf_ray import faults
from rlhf_ray.trainers.fault_schedule import FaultSchedule, Hit, seeded_hits

pytestmark = pytest.mark.unit

TARGETS = [
    Hit(0, "generator/0", "generate"),
    Hit(0, "learner/0", "update", "hang", 2, 30.0),
    Hit(0, "writer/0", "write"),
]


def visit(phase: str) -> bool:
    """Whether this process, which is the driver, meets a fault."""
    try:
        faults.reach(phase)
    except RuntimeError:
        return True
    return False


def test_hits_wait_for_their_iteration_and_fire_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.PLAN, raising=False)
    start, third = Hit(0, "driver", "draw", "raise"), Hit(3, "driver", "trained", "raise", after=2)
    with FaultSchedule(tmp_path / "faults", [start, third]) as schedule:
        found = []
        for iteration in (1, 2, 3, 3, 4):  # a run that went back replays the third
            schedule.on_iteration_start(iteration)
            found.append([visit("draw"), visit("trained"), visit("trained")])
            if iteration == 2:
                assert schedule.pending == [third]
    nothing = [False, False, False]
    assert found == [[True, False, False], nothing, [False, False, True], nothing, nothing]
    assert schedule.pending == []
    assert faults.PLAN not in os.environ


def test_an_earlier_plan_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.PLAN, "[]")
    with FaultSchedule(tmp_path, TARGETS) as schedule:
        assert [fault.actor for fault in faults.read_plan(os.environ[faults.PLAN])] == [
            hit.actor for hit in schedule.hits
        ]
    assert os.environ[faults.PLAN] == "[]"


def test_seeded_hits_are_spread_evenly_and_cover_all_targets() -> None:
    hits = seeded_hits(7, 300, 20, TARGETS)
    assert [hit.iteration for hit in hits] == list(range(20, 301, 20))
    assert {(hit.actor, hit.action, hit.after, hit.seconds) for hit in hits} == {
        (target.actor, target.action, target.after, target.seconds) for target in TARGETS
    }
    assert hits == seeded_hits(7, 300, 20, TARGETS)
    assert any(hits != seeded_hits(seed, 300, 20, TARGETS) for seed in range(8))
