"""Collections and syncs that lose actors: no sample lost or doubled, none of other weights than the published ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_rollouts import FakeGenerator
from fake_run import STARTED_AGAIN, FakeRun, makers
from ray_in_process import Actor, Died, Hangs, RayInProcess

from rlhf_ray.actors import calls, pool, replicas
from rlhf_ray.actors.replicas import State
from rlhf_ray.errors import ActorLost, AuditError, ConfigError, InfrastructureError
from rlhf_ray.weights import publish

pytestmark = pytest.mark.unit

Make = Callable[..., FakeRun]


def start(cls: type, *arguments: Any) -> Actor:
    """An actor that dies and hangs without a process of its own."""

    class Simulated(cls):
        pause_s = 0.0

        def die(self) -> None:
            raise Died

        def hang(self) -> None:
            raise Hangs

    return Actor(Simulated(*arguments))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    ray = RayInProcess()
    for module in (calls, replicas, publish):
        monkeypatch.setattr(module, "ray", ray)
    for module in (calls, replicas, pool):
        monkeypatch.setattr(module, "time", ray.clock)
    return lambda **options: FakeRun(tmp_path, start, ray.get, **options)


def test_nothing_is_lost_where_nobody_dies(run: Make) -> None:
    started = run()
    started.publish(1)
    rollouts = started.collect()
    started.check(rollouts, "trained 1 times")
    assert set(makers(rollouts)) == {("generator/0", 0), ("generator/1", 0)}
    assert started.actions() == []


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_dying_generator_loses_only_what_it_had_not_sent(run: Make, after: int) -> None:
    started = run(generator=("generate", after, "die"))
    started.publish(1)
    rollouts = started.collect()
    started.check(rollouts, "trained 1 times")
    assert makers(rollouts).count(("generator/0", 0)) == after - 1
    assert started.actions() == [("generator/0", "generate", STARTED_AGAIN), ("generator/0", "", "recovered")]
    started.publish(2)
    started.check(started.collect(), "trained 2 times")
    assert started.log.metrics() == {"failures/infrastructure": 1, "failures/restarts/generator": 1}


def test_an_only_generator_catches_up_before_it_samples(run: Make) -> None:
    started = run(generators=1, generator=("generate", 2, "die"))
    started.publish(4, attempt=2)
    rollouts = started.collect()
    started.check(rollouts, "trained 4 times")
    assert set(makers(rollouts)) == {("generator/0", 0), ("generator/0", 1)}
    assert started.generators.actors[0].made.asked == [(2, 4)]


@pytest.mark.parametrize("generators", [1, 2, 3])
def test_chunks_are_sampled_again_as_a_whole(run: Make, generators: int) -> None:
    started = run(generators=generators, chunk=5, generator=("generate", 1, "die"))
    started.publish(1)
    rollouts = started.collect()
    started.check(rollouts, "trained 1 times")
    sizes = sorted((batch.meta["prompt_id"].tolist()[0], len(batch.meta["prompt_id"])) for batch in rollouts.batches)
    assert sizes == [(0, 10), (35, 10), (70, 4)]


@pytest.mark.parametrize("phase", ["begin_update", "load_bucket", "finish_update"])
def test_a_generator_that_dies_in_a_sync_leaves_the_others_proven(run: Make, phase: str) -> None:
    started = run(generator=(phase, 1, "die"))
    started.publish(1)
    assert started.generators.replicas.those(State.SERVING) == [1]
    started.generators.wait_ready(1)
    rollouts = started.collect()
    started.check(rollouts, "trained 1 times")
    assert set(makers(rollouts)) == {("generator/0", 1), ("generator/1", 0)}
    assert started.generators.actors[1].made.asked == [(0, 1)], "the sync was repeated for the other one alone"


@pytest.mark.parametrize("phase", ["generate", "begin_update", "load_bucket", "finish_update"])
def test_a_hanging_generator_is_a_lost_one(run: Make, phase: str) -> None:
    started = run(wait_s=60, generator=(phase, 1, "hang"))
    hung = started.generators.actors[0]
    started.publish(1)
    started.check(started.collect(), "trained 1 times")
    assert started.actions()[0] == ("generator/0", phase, STARTED_AGAIN)
    assert not hung.alive


def test_a_process_that_answers_no_probe_is_found_before_the_deadline(run: Make) -> None:
    started = run(wait_s=1000, generator=("generate", 2, "hang"))
    started.publish(1)
    started.check(started.collect(), "trained 1 times")
    assert started.actions()[0] == ("generator/0", "health", STARTED_AGAIN)


def test_a_generator_that_died_between_two_uses_is_noticed(run: Make) -> None:
    started = run(generators=1)
    started.publish(1)
    started.generators.actors[0].alive = False
    started.check(started.collect(), "trained 1 times")
    started.generators.actors[0].alive = False
    started.publish(2)
    started.check(started.collect(), "trained 2 times")
    assert [phase for _, phase, _ in started.actions() if phase] == ["generate", "begin_update"]


def test_a_successor_that_dies_while_it_catches_up_is_replaced_in_turn(run: Make) -> None:
    started = run(generators=1, generator=("generate", 1, "die"))
    started.publish(1)
    begin, deaths = FakeGenerator.begin_update, iter([True])

    def die_once(self: FakeGenerator, version: int, attempt: int) -> None:
        if next(deaths, False):
            self.die()
        begin(self, version, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGenerator, "begin_update", die_once)
        started.check(started.collect(), "trained 1 times")
    actions = [action for _, _, action in started.actions()]
    assert actions == [STARTED_AGAIN, "starting it again in 1 s (restart 2 of 3)", "recovered"]


@pytest.mark.parametrize("after", [1, 4])
def test_samples_that_are_gone_with_their_node_are_sampled_again(run: Make, after: int) -> None:
    started = run(reward=("score", after, "lose"))
    started.publish(1)
    started.check(started.collect(), "trained 1 times")
    assert started.actions() == [], "a lost object is no lost actor"


@pytest.mark.parametrize("deed", ["die", "hang"])
def test_a_scorer_is_replaced_and_asked_again(run: Make, deed: str) -> None:
    started = run(reward=("score", 3, deed))
    started.publish(1)
    started.check(started.collect(), "trained 1 times")
    assert started.actions()[0] == ("reward/fake/0", "score", STARTED_AGAIN)


@pytest.mark.parametrize("kind", ["generator", "reward"])
def test_an_actor_that_dies_while_it_loads_is_started_again(run: Make, kind: str) -> None:
    started = run(**{kind: ("ready", 1, "die")})
    started.publish(1)
    started.check(started.collect(), "trained 1 times")
    assert started.actions()[0][1:] == ("load", STARTED_AGAIN)


def test_what_an_actor_says_at_its_first_start_is_no_loss(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would say so again: a wrong configuration ends the run at once, and so does an engine that cannot load."""
    for raised in (ConfigError("no such model"), ActorLost("The engine failed: no such model")):
        monkeypatch.setattr(FakeGenerator, "ready", raiser(raised))
        with pytest.raises((ConfigError, InfrastructureError), match="no such model") as caught:
            run()
        assert not isinstance(caught.value, ActorLost)


def raiser(error: Exception) -> Callable[[object], None]:
    def method(self: object) -> None:
        raise error

    return method


def test_a_generator_that_dies_too_often_ends_the_run_with_the_causes(run: Make) -> None:
    started = run(generators=1)
    started.publish(1)
    started.generators.replicas.supervision.budget("generator").restarts = 0
    started.generators.actors[0].alive = False
    with pytest.raises(InfrastructureError, match=r"generator was lost 1 times .*\n  generator/0 \(generate\): "):
        started.collect()
    assert started.actions() == [("generator/0", "generate", "no restart is left")]
    assert started.generators.unfinished == started.scorers.unfinished == 0, "nothing of it reaches a later collection"


def test_a_learner_that_dies_while_it_publishes_is_told_from_a_generator(run: Make) -> None:
    started = run(learner=("publish", 3, "die"))
    with pytest.raises(ActorLost, match="A learner rank was lost while it published its weights"):
        started.publish(1)
    assert started.actions() == []
    with pytest.raises(AuditError, match="nothing was published"):
        started.collect()
    started.start_learner()
    started.publish(1, attempt=1)
    started.check(started.collect(), "trained 1 times")


def test_nothing_catches_up_to_weights_that_the_learner_no_longer_holds(run: Make) -> None:
    started = run(generators=1, generator=("generate", 1, "die"))
    started.publish(1)
    started.get(started.learner.train.remote(2))
    with pytest.raises(AuditError, match="weights version 1 again, but the learner holds others"):
        started.collect()
    assert started.generators.replicas.those(State.SERVING) == []
    started.publish(2)
    started.check(started.collect(), "trained 2 times")


def test_without_generators_the_learner_publishes_all_the_same(run: Make) -> None:
    started = run(generators=0)
    report = started.sync.publish(3)
    assert (report.version, report.digests) == (3, {"w": "untrained"})
