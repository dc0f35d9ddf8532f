"""Collections that lose actors on the way: no sample lost or doubled, none of other weights than the published ones."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from fake_rollouts import FakeGenerator, FakeLearner, FakeScorer, token

from rlhf_ray.actors import replicas
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.actors.replicas import State
from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.errors import ActorLost, AuditError
from rlhf_ray.trainers.collector import RolloutCollector
from rlhf_ray.trainers.failure_log import FAILURES_FILE, FailureLog
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.weights.publish import WeightSync

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

PROMPTS = pa.table({"prompt_id": [7 * i for i in range(12)]})
SAMPLES = 2
WAIT_S = 120.0


class Run:
    """Two generators, a scorer and a learner; `faults`: kind -> what the first life of its actor 0 does."""

    def __init__(self, folder: Path, generators: int = 2, chunk: int | None = None, **faults: dict[str, Any]) -> None:
        self.folder, self.faults = folder, faults
        self.log = FailureLog(folder / FAILURES_FILE)
        resources = ResourcesSection(restarts=3, start_timeout_s=WAIT_S, call_timeout_s=WAIT_S)
        supervision = Supervision(resources, self.log)
        options: dict[str, Any] = {"supervision": supervision}
        start = self._starter(FakeGenerator, "generator")
        self.generators = ActorPool(
            "generator", start, generators, "generate", returns="streaming", weights=True, **options
        )
        self.scorers = ActorPool("reward/fake", self._starter(FakeScorer, "reward"), 1, "score", **options)
        self.learner = self._starter(FakeLearner, "learner")(0)
        for pool in (self.generators, self.scorers):
            pool.wait_ready(WAIT_S)
        self.sync = WeightSync([self.learner], self.generators.replicas, SyncSection(), "float32", WAIT_S)
        self.collector = RolloutCollector(self.generators, {"fake": self.scorers}, None, SAMPLES, chunk)

    def _starter(self, cls: type, kind: str) -> Callable[[int], Any]:
        remote = ray.remote(cls).options(num_cpus=0.01, max_concurrency=8)

        def start(index: int) -> Any:
            fault = self.faults.get(kind) if index == 0 else None
            return remote.remote(f"{kind}/{index}", str(self.folder), fault)

        return start

    def publish(self, version: int, attempt: int = 0) -> None:
        ray.get(self.learner.train.remote(version))
        self.sync.publish(version, attempt)

    def collect(self) -> Rollouts:
        return self.collector.collect(PROMPTS, 0, 0)

    def actions(self) -> list[tuple[str, str, str]]:
        """(actor, phase, action) of the failure log."""
        path = self.folder / FAILURES_FILE
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(line["actor"], line["phase"], line["action"]) for line in lines]

    def end(self) -> None:
        for actor in (*self.generators.actors, *self.scorers.actors, self.learner):
            ray.kill(actor)


@pytest.fixture
def run(ray_local: None, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(**options: Any) -> Run:
        runs.append(Run(tmp_path, **options))
        return runs[0]

    yield start
    for started in runs:
        started.end()


def check(rollouts: Rollouts, weights: str) -> None:
    """Every sample once, scored as it should be, by those weights."""
    prompts, samples = rollouts.column("prompt_id").tolist(), rollouts.column("sample_index").tolist()
    found = list(zip(prompts, samples, strict=True))
    assert sorted(found) == [(7 * i, j) for i in range(12) for j in range(SAMPLES)]
    assert rollouts.scores()["fake"].tolist() == [token(*key) for key in found]
    tables = ray.get([batch.samples for batch in rollouts.batches])
    assert np.concatenate([table["token"] for table in tables]).tolist() == [token(*key) for key in found]
    assert {batch.meta["weights"] for batch in rollouts.batches} == {weights}


def makers(rollouts: Rollouts) -> set[tuple[str, int]]:
    return {batch.meta["by"] for batch in rollouts.batches}


STARTED_AGAIN = "starting it again (restart 1 of 3)"


def test_a_dying_generator_loses_only_what_it_had_not_sent(run: Callable[..., Run]) -> None:
    started = run(generator={"at": "generate", "after": 3, "do": "die"})
    started.publish(1)
    rollouts = started.collect()
    check(rollouts, "trained 1 times")
    by = [batch.meta["by"] for batch in rollouts.batches]
    assert by.count(("generator/0", 0)) == 2, "what it had sent stays"
    assert started.actions()[0] == ("generator/0", "generate", STARTED_AGAIN)
    started.publish(2)  # by the next sync at the latest its successor is one of the generators again
    started.generators.wait_ready(WAIT_S)
    started.publish(3)
    check(started.collect(), "trained 3 times")
    assert started.generators.replicas.those(State.SERVING) == [0, 1]
    assert started.actions()[1:] == [("generator/0", "", "recovered")]
    assert started.log.metrics() == {"failures/infrastructure": 1, "failures/restarts/generator": 1}


def test_an_only_generator_catches_up_before_it_samples(run: Callable[..., Run]) -> None:
    started = run(generators=1, generator={"at": "generate", "after": 2, "do": "die"})
    started.publish(4, attempt=2)
    rollouts = started.collect()
    check(rollouts, "trained 4 times")
    assert makers(rollouts) == {("generator/0", 0), ("generator/0", 1)}
    assert ray.get(started.generators.actors[0].history.remote()) == [(2, 4)]


def test_chunks_are_sampled_again_as_a_whole(run: Callable[..., Run]) -> None:
    started = run(chunk=2, generator={"at": "generate", "after": 2, "do": "die"})
    started.publish(1)
    rollouts = started.collect()
    check(rollouts, "trained 1 times")
    chunks = sorted(batch.meta["prompt_id"].tolist() for batch in rollouts.batches)
    assert chunks == [[14 * i, 14 * i, 14 * i + 7, 14 * i + 7] for i in range(6)]


@pytest.mark.parametrize("phase", ["begin_update", "load_bucket", "finish_update"])
def test_a_generator_that_dies_in_a_sync_leaves_the_others_proven(run: Callable[..., Run], phase: str) -> None:
    started = run(generator={"at": phase, "do": "die"})
    started.publish(1)
    assert started.generators.replicas.those(State.SERVING) == [1]
    started.generators.wait_ready(WAIT_S)
    rollouts = started.collect()
    check(rollouts, "trained 1 times")
    assert makers(rollouts) == {("generator/0", 1), ("generator/1", 0)}
    assert ray.get(started.generators.actors[1].history.remote()) == [(0, 1)], "the sync was repeated for the other one"


def test_a_generator_that_died_between_two_uses_is_noticed(run: Callable[..., Run]) -> None:
    started = run(generators=1)
    started.publish(1)
    os.kill(ray.get(started.generators.actors[0].pid.remote()), signal.SIGKILL)
    check(started.collect(), "trained 1 times")
    os.kill(ray.get(started.generators.actors[0].pid.remote()), signal.SIGKILL)
    started.publish(2)
    check(started.collect(), "trained 2 times")
    assert [phase for _, phase, _ in started.actions() if phase] == ["generate", "begin_update"]


def test_a_stopped_process_is_found_by_its_silence(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "PROBE_S", 0.5)
    monkeypatch.setattr(replicas, "PROBES_MISSED", 4)
    started = run()
    started.publish(1)
    stopped = ray.get(started.generators.actors[1].pid.remote())
    os.kill(stopped, signal.SIGSTOP)
    check(started.collect(), "trained 1 times")
    assert started.actions()[0] == ("generator/1", "health", STARTED_AGAIN)
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, signal.SIGKILL)


def test_scorers_that_die_and_samples_that_are_gone_cost_nothing(run: Callable[..., Run]) -> None:
    started = run(generators=1, reward={"at": "lose", "after": 2, "do": "lose"})
    started.publish(1)
    check(started.collect(), "trained 1 times")
    assert started.actions() == [], "a lost object is no lost actor"
    os.kill(ray.get(started.scorers.actors[0].pid.remote()), signal.SIGKILL)
    check(started.collect(), "trained 1 times")
    assert started.actions()[0] == ("reward/fake/0", "score", STARTED_AGAIN)


def test_a_learner_that_dies_while_it_publishes_is_told_from_a_generator(run: Callable[..., Run]) -> None:
    started = run(learner={"at": "publish", "after": 3, "do": "die"})
    with pytest.raises(ActorLost, match="A learner rank was lost while it published its weights"):
        started.publish(1)
    assert started.actions() == []
    with pytest.raises(AuditError, match="nothing was published"):
        started.collect()
    started.learner = started._starter(FakeLearner, "learner")(0)
    started.sync = WeightSync([started.learner], started.generators.replicas, SyncSection(), "float32", WAIT_S)
    started.publish(1, attempt=1)
    check(started.collect(), "trained 1 times")


def test_nothing_catches_up_to_weights_that_the_learner_no_longer_holds(run: Callable[..., Run]) -> None:
    started = run(generators=1, generator={"at": "generate", "do": "die"})
    started.publish(1)
    ray.get(started.learner.train.remote(2))
    with pytest.raises(AuditError, match="weights version 1 again, but the learner holds others"):
        started.collect()
    started.publish(2)
    check(started.collect(), "trained 2 times")
