"""Fault injection: what fires, where, when, how often; what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import faults
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit

PACKAGE = Path(faults.__file__).parent


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the plan of `faults` for a process that is `actor`."""

    def set_plan(*planned: dict[str, Any], actor: str = "learner/0") -> None:
        monkeypatch.setenv(faults.PLAN, json.dumps([{"action": "raise"} | fault for fault in planned]))
        monkeypatch.setenv(faults.ACTOR, actor)
        faults._injector.cache_clear()  # counts of an equal plan, as in a new process

    return set_plan


def fired(phase: str, times: int) -> list[int]:
    """Which of so many visits met a fault."""
    found = []
    for number in range(1, times + 1):
        try:
            faults.reach(phase)
        except RuntimeError:
            found.append(number)
    return found


def test_without_a_plan_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.PLAN, raising=False)
    faults.reach("anything")
    assert faults.actor_environment("learner/1") == {faults.ACTOR: "learner/1"}


def test_a_fault_fires_at_the_nth_visit_of_its_phase(plan: Any, capfd: pytest.CaptureFixture[str]) -> None:
    plan({"actor": "learner/0", "phase": "update", "after": 2}, {"actor": "learner/0", "phase": "update", "after": 4})
    assert fired("publish", 3) == []
    assert fired("update", 6) == [2, 4]
    assert "injected fault: raise learner/0 at update (2)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "hit"), [("learner/0", False), ("learner/1", True), ("learner/*", True), ("generator/*", False)]
)
def test_only_the_named_actor_meets_it(plan: Any, pattern: str, hit: bool) -> None:
    plan({"actor": pattern, "phase": "load"}, actor="learner/1")
    assert bool(fired("load", 1)) == hit


def test_a_component_s_scorers_have_longer_names(plan: Any) -> None:
    plan({"actor": "reward/short/0", "phase": "score"}, actor="reward/short/0")
    assert fired("score", 1) == [1]


def test_a_process_without_a_name_is_the_driver(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan({"actor": "driver", "phase": "draw"})
    monkeypatch.delenv(faults.ACTOR)
    assert fired("draw", 2) == [1]


def test_once_means_no_successor_meets_it_again(plan: Any, tmp_path: Path) -> None:
    again = {"actor": "learner/0", "phase": "load"}
    once = again | {"once": str(tmp_path / "fired")}
    lives = []
    for fault in (again, again, once, once):
        plan(fault)
        lives.append(fired("load", 1))
    assert lives == [[1], [1], [1], []]
    assert (tmp_path / "fired").exists()


def test_a_fault_may_wait_for_a_file(plan: Any, tmp_path: Path) -> None:
    plan({"actor": "learner/0", "phase": "update", "after": 2, "when": str(tmp_path / "iteration-3")})
    assert fired("update", 3) == []
    (tmp_path / "iteration-3").touch()
    assert fired("update", 3) == [2]


def test_of_two_faults_at_one_visit_the_second_waits_for_the_first(plan: Any, tmp_path: Path) -> None:
    """A successor counts anew, so that equal counts make one death per life."""
    killed = [{"actor": "learner/0", "phase": "load", "once": str(tmp_path / name)} for name in ("one", "two")]
    lives = []
    for _ in range(3):
        plan(*killed)
        lives.append(fired("load", 1))
    assert lives == [[1], [1], []]


def test_kill_is_the_signal_that_nothing_catches(tmp_path: Path) -> None:
    plan = [{"actor": "driver", "phase": "draw", "action": "kill", "once": str(tmp_path / "fired")}]
    code = "from rlhf_ray import faults; faults.reach('draw')"
    environment = {faults.PLAN: json.dumps(plan), "PYTHONPATH": str(PACKAGE.parent)}
    ends = [subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode for _ in range(2)]
    assert ends == [-signal.SIGKILL, 0]


@pytest.mark.parametrize(("action", "seconds"), [("hang", faults.FOREVER_S), ("delay", 5.0)])
def test_hang_and_delay_sleep(plan: Any, monkeypatch: pytest.MonkeyPatch, action: str, seconds: float) -> None:
    slept: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", slept.append)
    fault = {"actor": "learner/0", "phase": "update", "action": action}
    plan(fault | ({"seconds": seconds} if action == "delay" else {}))
    faults.reach("update")
    assert slept == [seconds]


def test_memory_is_the_allocator_s_own_error(plan: Any) -> None:
    plan({"actor": "learner/0", "phase": "update", "action": "memory"})
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate"):
        faults.reach("update")


@pytest.mark.parametrize(("action", "left"), [("flip", b"abceef"), ("truncate", b"abc")])
def test_files_are_damaged(plan: Any, tmp_path: Path, action: str, left: bytes) -> None:
    for number in (1, 2):
        (tmp_path / f"step-{number}").write_bytes(b"abcdef")
    os.utime(tmp_path / "step-1", (1, 1))
    plan({"actor": "driver", "phase": "checkpointed", "action": action, "path": f"{tmp_path}/step-*"}, actor="driver")
    faults.reach("checkpointed")
    assert (tmp_path / "step-1").read_bytes() == b"abcdef"
    assert (tmp_path / "step-2").read_bytes() == left


def test_actors_get_the_plan_of_who_starts_them(plan: Any) -> None:
    plan({"actor": "writer/0", "phase": "write"})
    environment = faults.actor_environment("writer/0")
    assert environment[faults.ACTOR] == "writer/0"
    assert [fault.actor for fault in faults.read_plan(environment[faults.PLAN])] == ["writer/0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "RLHF_RAY_FAULTS is no plan of faults: .*line 1"),
        ('{"actor": "driver"}', "should be a valid list"),
        ('[{"actor": "driver", "phase": "draw", "action": "explode"}]', "action"),
        ('[{"actor": "driver", "phase": "draw", "action": "kill", "atfer": 2}]', "atfer"),
        ('[{"actor": "driver", "phase": "draw", "action": "flip"}]', "`path` belongs to the actions flip and truncate"),
        ('[{"actor": "driver", "phase": "update", "action": "kill"}]', "driver never reaches `update`.*learner: load"),
        ('[{"actor": "leaner/0", "phase": "update", "action": "kill"}]', "leaner/0 never reaches"),
    ],
)
def test_a_plan_that_would_never_fire_is_refused(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.PLAN, text)
    with pytest.raises(ConfigError, match=message):
        faults.reach("draw")


def test_every_phase_is_reached_somewhere() -> None:
    sources = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "faults.py"]
    reached = {phase for source in sources for phase in re.findall(r'faults\.reach\("(\w+)"\)', source)}
    assert reached == {phase for phases in faults.PHASES.values() for phase in phases}
