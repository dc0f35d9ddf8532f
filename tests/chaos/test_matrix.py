"""Every kind of actor is lost at every kind of moment: no sample lost or doubled, the weights those of a calm run.

An actor that is itself at the moment ends its own process there. Another one is killed from outside while the actor
whose moment it is stands still for some seconds. The seconds of recovery go to benchmarks/results/recovery_matrix.md.
"""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from exact_runs import assert_same_run, exact, metrics
from killed_runs import DEADLINE_S, await_iterations, start
from recovery_table import RecoveryTable
from tiny_runs import TinyRuns

from rlhf_ray.config import PPOConfig
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.failure_log import FAILURES_FILE
from rlhf_ray.trainers.fault_schedule import FaultSchedule, Hit
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.rollout_actors import PATIENCE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * DEADLINE_S), pytest.mark.usefixtures("ray_local")]

ITERATIONS, EVERY, HIT = 6, 2, 4  # a checkpoint comes before the iteration that is hit, and at its end; two go after it
STANDSTILL_S = 3.0
SILENCE_S = 60.0  # after which an actor that hangs is given up
MOMENTS = {
    "generation": Hit(HIT, "generator/0", "generate"),
    "scoring": Hit(HIT, "reward/quality/0", "score"),
    "update": Hit(HIT, "learner/0", "update", after=2),
    "sync": Hit(HIT, "generator/0", "load_bucket"),
    "checkpoint": Hit(HIT, "learner/0", "save"),
}
ACTORS = ("generator/0", "reward/short/0", "reward/quality/0", "reference/0", "learner/0", "learner/1", "writer/0")
OWN = {  # moments that are not in the iteration's common course
    "load": [Hit(0, actor, "load") for actor in ("generator/0", "reward/quality/0", "reference/0", "learner/1")],
    "begin_update": [Hit(HIT, "generator/0", "begin_update")],
    "finish_update": [Hit(HIT, "generator/0", "finish_update")],
    "publish": [Hit(HIT, "learner/0", "publish"), Hit(HIT, "learner/1", "publish")],
    "write": [Hit(HIT, "writer/0", "write")],
}
HANGING = [
    Hit(HIT, "generator/0", "generate", "hang"),
    Hit(HIT, "reward/quality/0", "score", "hang"),
    Hit(HIT, "reference/0", "logprobs", "hang"),
    Hit(HIT, "learner/1", "update", "hang"),
    Hit(HIT, "writer/0", "write", "hang"),
]


def run_config(tiny: TinyRuns, root: Path, name: str, *overrides: str) -> PPOConfig:
    length = (f"ppo.iterations={ITERATIONS}", f"checkpoint.every={EVERY}", "learner.ranks=2")
    return exact(tiny, root, name, *length, *overrides)


@pytest.fixture(scope="module")
def undisturbed(tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PPOTrainer(run_config(tiny, tmp_path_factory.mktemp("matrix"), "undisturbed")).train().folder


class KillFromOutside(Callback):
    """Ends the process of `actor` by SIGKILL as soon as the marker of a hit in this iteration exists."""

    def __init__(self, actor: str, marker: Path) -> None:
        self.actor, self.marker = actor, marker

    def on_train_start(self, trainer: Any) -> None:
        self.run = trainer.folder.name

    def on_iteration_start(self, iteration: int) -> None:
        if iteration == HIT and not self.marker.exists():
            handle = ray.get_actor(f"{self.run}/{self.actor}")
            pid = ray.get(handle.__ray_call__.remote(lambda actor: os.getpid()), timeout=DEADLINE_S)
            threading.Thread(target=self._kill, args=(pid,), daemon=True).start()

    def _kill(self, pid: int) -> None:
        _await(self.marker)
        os.kill(pid, signal.SIGKILL)


def _await(marker: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not marker.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the fault of {marker} has not fired")
        time.sleep(0.02)


def standing_still(hit: Hit) -> Hit:
    """The same moment, held for a while."""
    return Hit(hit.iteration, hit.actor, hit.phase, "delay", hit.after, STANDSTILL_S)


def recovery_s(folder: Path, actor: str) -> float:
    """Seconds from the notice of the loss to the recovery, as the run itself logged them."""
    lines = [json.loads(line) for line in (folder / FAILURES_FILE).read_text().splitlines()]
    lost, group = {line["actor"] for line in lines if line["cause"]}, f"{actor.partition('/')[0]}/all"
    assert lost <= {actor, group}
    assert lost, f"the log does not name {actor}"
    return sum(line["recovery_s"] for line in lines if line["recovery_s"] is not None)


def check(folder: Path, undisturbed: Path) -> None:
    assert len(metrics(folder)) == ITERATIONS
    assert_same_run(folder, undisturbed, resampled=True)
    assert ray.util.list_named_actors() == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("actor", ACTORS)
def test_a_killed_actor_changes_nothing(
    undisturbed: Path, tiny: TinyRuns, tmp_path: Path, recoveries: RecoveryTable, actor: str, moment: str
) -> None:
    at, config = MOMENTS[moment], run_config(tiny, tmp_path, "killed")
    callbacks: list[Callback] = []
    with FaultSchedule(tmp_path / "faults", [at if actor == at.actor else standing_still(at)]) as schedule:
        if actor != at.actor:
            callbacks.append(KillFromOutside(actor, schedule.marker(schedule.hits[0])))
        folder = PPOTrainer(config, callbacks=[schedule, *callbacks]).train().folder
    assert schedule.pending == []
    recoveries.add(actor, moment, recovery_s(folder, actor))
    check(folder, undisturbed)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("hit", [hit for hits in OWN.values() for hit in hits] + HANGING, ids=str)
def test_an_actor_that_ends_or_hangs_at_its_own_work_changes_nothing(
    undisturbed: Path, tiny: TinyRuns, tmp_path: Path, recoveries: RecoveryTable, hit: Hit
) -> None:
    silence = [f"resources.call_timeout_s={SILENCE_S}", f"rewards.quality.timeout_s={SILENCE_S / PATIENCE}"]
    silence = silence if hit.action == "hang" else []
    with FaultSchedule(tmp_path / "faults", [hit]) as schedule:
        trainer = PPOTrainer(run_config(tiny, tmp_path, "killed", *silence), callbacks=[schedule])
        folder = trainer.train().folder
    assert schedule.pending == []
    recoveries.add(hit.actor, hit.phase + (", hanging" if silence else ""), recovery_s(folder, hit.actor))
    check(folder, undisturbed)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_learner_lost_after_its_last_checkpoint_was_damaged_goes_back_to_the_one_before(
    undisturbed: Path, tiny: TinyRuns, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    shards = str(tmp_path / "killed" / "checkpoints" / "step-*" / "learner" / "rank-00001.safetensors")
    hits = [Hit(HIT, "driver", "checkpointed", damage, path=shards), Hit(HIT + 1, "learner/0", "update")]
    with FaultSchedule(tmp_path / "faults", hits) as schedule:
        config = run_config(tiny, tmp_path, "killed", "checkpoint.asynchronous=false")
        folder = PPOTrainer(config, callbacks=[schedule]).train().folder
    assert schedule.pending == []
    assert f"checkpoint step-{HIT:06d} is damaged" in capfd.readouterr().out
    check(folder, undisturbed)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_driver_changes_nothing(
    undisturbed: Path, tiny: TinyRuns, tmp_path: Path, recoveries: RecoveryTable, moment: str
) -> None:
    config, folder = run_config(tiny, tmp_path, "killed"), tmp_path / "killed"
    schedule = FaultSchedule(tmp_path / "faults", [standing_still(MOMENTS[moment])])
    driver = start(config, tmp_path / "driver", schedule.plan())
    try:
        await_iterations(folder / "metrics.jsonl", HIT - 1, driver)
        schedule.on_iteration_start(HIT)
        _await(schedule.marker(schedule.hits[0]))
    finally:
        driver.kill()
        driver.wait()
    clock = Clock()
    assert PPOTrainer(config, resume=folder, callbacks=[clock]).train().iterations == ITERATIONS
    assert schedule.pending == []
    recoveries.add("driver", moment, clock.seconds)
    check(folder, undisturbed)
    shutil.rmtree(tmp_path)


class Clock(Callback):
    """Seconds until a resumed run trains again: its actors are up and hold the checkpoint."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def on_train_start(self, trainer: Any) -> None:
        self.seconds = time.monotonic() - self.started
