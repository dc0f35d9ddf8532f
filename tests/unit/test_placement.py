"""Who shares what with whom, as pure functions of the needs."""

import pytest

from rlhf_ray.actors.placement import ActorNeed, _bundles, _gpu_share, even_share
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit

CPUS = 0.25


def needs(learners=2, generators=2, engine_gpus=1, scorers=1):
    return [
        ActorNeed("writer", 0),
        *(ActorNeed("learner", i, gpus=1) for i in range(learners)),
        *(ActorNeed("generator", i, gpus=engine_gpus) for i in range(generators)),
        ActorNeed("reference", 0, gpus=1),
        *(ActorNeed("reward/neural", i, gpus=1) for i in range(scorers)),
        ActorNeed("reward/rule", 0),
    ]


def described(bundles):
    return [(bundle.cpus, bundle.gpus, [(m.kind, m.index) for m in bundle.members]) for bundle in bundles]


def test_without_gpus_every_actor_gets_its_fraction_of_the_cpus():
    bundles, shared = _bundles(needs(), 0, CPUS)
    assert not shared
    assert [(b.cpus, b.gpus, len(b.members)) for b in bundles] == [(CPUS, 0, 1)] * len(needs())
    assert all(_gpu_share(b.members[0], b) == 0 for b in bundles)


def test_engines_that_span_gpus_need_gpus():
    with pytest.raises(ConfigError, match="tensor_parallel_size: 2"):
        _bundles(needs(engine_gpus=2), 0, CPUS)


def test_with_enough_gpus_every_actor_that_computes_has_its_own():
    bundles, shared = _bundles(needs(engine_gpus=2), 8, CPUS)
    assert not shared
    assert sum(b.gpus for b in bundles) == 8
    owners = {(m.kind, m.index): _gpu_share(m, b) for b in bundles for m in b.members}
    assert owners["generator", 1] == 2
    assert owners["learner", 0] == owners["reference", 0] == 1
    assert owners["writer", 0] == owners["reward/rule", 0] == 0


def test_with_fewer_gpus_equal_indices_share_one():
    bundles, shared = _bundles(needs(), 2, CPUS)
    assert shared
    gpu = [b for b in bundles if b.gpus]
    assert described(gpu) == [
        (4 * CPUS, 1, [("learner", 0), ("generator", 0), ("reference", 0), ("reward/neural", 0)]),
        (2 * CPUS, 1, [("learner", 1), ("generator", 1)]),
    ]
    for bundle in gpu:
        shares = [_gpu_share(member, bundle) for member in bundle.members]
        assert all(share == pytest.approx(1 / len(shares), abs=1e-3) for share in shares)
        assert sum(shares) <= 1
    assert [m.kind for b in bundles if not b.gpus for m in b.members] == ["writer", "reward/rule"]


def test_every_actor_has_exactly_one_place():
    for gpus in (0, 1, 2, 3, 6, 20):
        wanted = needs(learners=1, generators=3, scorers=2)
        bundles, _ = _bundles(wanted, gpus, CPUS)
        placed = [(m.kind, m.index) for b in bundles for m in b.members]
        assert sorted(placed) == sorted((n.kind, n.index) for n in wanted)
        assert sum(b.gpus for b in bundles) <= max(gpus, 0)
        assert sum(b.cpus for b in bundles) == pytest.approx(CPUS * len(wanted))


def test_engines_that_span_gpus_cannot_share_them():
    with pytest.raises(ConfigError, match=r"ask for 8 GPUs.*4 are available"):
        _bundles(needs(engine_gpus=2), 4, CPUS)


def test_two_learner_ranks_cannot_share_a_gpu():
    with pytest.raises(ConfigError, match=r"learner\.ranks: 2 .*1 GPU"):
        _bundles(needs(), 1, CPUS)


@pytest.mark.parametrize(
    ("nodes", "actors", "share"),
    [
        ((2.0,), 5, 0.4),
        ((2.0,), 1, 1.0),
        ((0.0, 2.0, 2.0), 5, 0.66),  # three on one node, two on the other: 0.8 would fit twice on each
        ((1.0, 1.0), 3, 0.5),
        ((0.0,), 3, 0.01),  # refused afterwards
    ],
)
def test_even_shares_fit_onto_single_nodes(nodes, actors, share):
    assert even_share(nodes, actors) == share
