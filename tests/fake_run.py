"""Generators, a scorer and a learner of `fake_rollouts`, joined up as in a run; what it takes to make and check one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fake_rollouts import FakeGenerator, FakeLearner, FakeScorer, Fault, token

from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.trainers.collector import RolloutCollector
from rlhf_ray.trainers.failure_log import FAILURES_FILE, FailureLog
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.weights.publish import WeightSync

PROMPTS = pa.table({"prompt_id": [7 * i for i in range(12)]})
SAMPLES = 2
STARTED_AGAIN = "starting it again (restart 1 of 3)"
Start = Callable[..., Any]  # (class, arguments...) -> handle of an actor


class FakeRun:
    """`faults`: kind -> what the first life of its actor 0 does."""

    def __init__(
        self,
        folder: Path,
        start: Start,
        get: Callable[[Any], Any],
        *,
        generators: int = 2,
        chunk: int | None = None,
        wait_s: float = 120.0,
        **faults: Fault,
    ) -> None:
        self.folder, self.start, self.get, self.faults, self.wait_s = folder, start, get, faults, wait_s
        self.log = FailureLog(folder / FAILURES_FILE)
        resources = ResourcesSection(restarts=3, start_timeout_s=wait_s, call_timeout_s=wait_s)
        options: dict[str, Any] = {"supervision": Supervision(resources, self.log)}
        self.scorers = ActorPool("reward/fake", self._starter(FakeScorer, "reward"), 1, "score", **options)
        options |= {"returns": "streaming", "weights": True}
        start_generator = self._starter(FakeGenerator, "generator")
        self.generators = ActorPool("generator", start_generator, generators, "generate", **options)
        self.start_learner()
        for pool in (self.generators, self.scorers):
            pool.wait_ready(wait_s)
        self.collector = RolloutCollector(self.generators, {"fake": self.scorers}, None, SAMPLES, chunk)

    def _starter(self, cls: type, kind: str) -> Callable[[int], Any]:
        def start(index: int) -> Any:
            fault = self.faults.get(kind) if index == 0 else None
            return self.start(cls, f"{kind}/{index}", str(self.folder), fault)

        return start

    def start_learner(self) -> None:
        """A new learner, and a sync from it."""
        self.learner = self._starter(FakeLearner, "learner")(0)
        self.sync = WeightSync([self.learner], self.generators.replicas, SyncSection(), "float32", self.wait_s)

    def publish(self, version: int, attempt: int = 0) -> None:
        """Train `version` times, and publish that."""
        self.get(self.learner.train.remote(version))
        self.sync.publish(version, attempt)

    def collect(self) -> Rollouts:
        return self.collector.collect(PROMPTS, 0, 0)

    @property
    def actors(self) -> list[Any]:
        return [*self.generators.actors, *self.scorers.actors, self.learner]

    def actions(self) -> list[tuple[str, str, str]]:
        """(actor, phase, action) of the failure log."""
        path = self.folder / FAILURES_FILE
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(line["actor"], line["phase"], line["action"]) for line in lines]

    def check(self, rollouts: Rollouts, weights: str) -> None:
        """Every sample once, scored as it should be, by those weights."""
        prompts, samples = rollouts.column("prompt_id").tolist(), rollouts.column("sample_index").tolist()
        found = list(zip(prompts, samples, strict=True))
        assert sorted(found) == [(7 * i, j) for i in range(12) for j in range(SAMPLES)]
        assert rollouts.scores()["fake"].tolist() == [token(*key) for key in found]
        tables = [self.get(batch.samples) for batch in rollouts.batches]
        assert np.concatenate([table["token"] for table in tables]).tolist() == [token(*key) for key in found]
        assert {batch.meta["weights"] for batch in rollouts.batches} == {weights}


def makers(rollouts: Rollouts) -> list[tuple[str, int]]:
    """(name, life) of the generator of each batch."""
    return [batch.meta["by"] for batch in rollouts.batches]
