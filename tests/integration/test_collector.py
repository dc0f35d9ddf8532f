"""Collections and syncs that lose real processes; what follows from a loss is in the unit test `test_lost_actors`."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_run import STARTED_AGAIN, FakeRun, makers

from rlhf_ray.actors import replicas
from rlhf_ray.actors.replicas import State
from rlhf_ray.errors import ActorLost

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

Make = Callable[..., FakeRun]


def start(cls: type, *arguments: Any) -> Any:
    return ray.remote(cls).options(num_cpus=0.01, max_concurrency=8).remote(*arguments)


@pytest.fixture
def run(ray_local: None, tmp_path: Path) -> Iterator[Make]:
    runs: list[FakeRun] = []

    def make(**options: Any) -> FakeRun:
        runs.append(FakeRun(tmp_path, start, ray.get, **options))
        return runs[0]

    yield make
    for actor in runs[0].actors:
        ray.kill(actor)


def test_generators_that_die_while_they_sample_and_while_they_load_weights(run: Make) -> None:
    started = run(generator=("generate", 3, "die"))
    started.publish(1)
    rollouts = started.collect()
    started.check(rollouts, "trained 1 times")
    assert makers(rollouts).count(("generator/0", 0)) == 2, "what it had sent stays"
    assert started.actions()[0] == ("generator/0", "generate", STARTED_AGAIN)
    started.generators.wait_ready(120)
    started.publish(2)
    assert started.generators.replicas.those(State.SERVING) == [0, 1]

    os.kill(ray.get(started.generators.actors[1].pid.remote()), signal.SIGKILL)  # and nobody is waiting for it
    started.publish(3)
    assert started.generators.replicas.those(State.SERVING) == [0]
    started.generators.wait_ready(120)
    rollouts = started.collect()
    started.check(rollouts, "trained 3 times")
    assert set(makers(rollouts)) == {("generator/0", 1), ("generator/1", 1)}
    assert ray.get(started.generators.actors[1].history.remote()) == [(0, 3)], "caught up by a sync of its own"


def test_a_stopped_process_is_found_by_its_silence(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "PROBE_S", 1.0)
    started = run()
    started.publish(1)
    stopped = ray.get(started.generators.actors[1].pid.remote())
    os.kill(stopped, signal.SIGSTOP)
    started.check(started.collect(), "trained 1 times")
    assert started.actions()[0] == ("generator/1", "health", STARTED_AGAIN)


def test_a_learner_that_dies_while_it_publishes_is_told_from_a_generator(run: Make) -> None:
    started = run(generators=1, learner=("publish", 3, "die"), reward=("score", 2, "lose"))
    with pytest.raises(ActorLost, match="A learner rank was lost while it published its weights"):
        started.publish(1)
    assert started.actions() == []
    started.start_learner()
    started.publish(1, attempt=1)
    started.check(started.collect(), "trained 1 times")
    assert started.actions() == [], "and what an actor finds lost is no lost actor"
