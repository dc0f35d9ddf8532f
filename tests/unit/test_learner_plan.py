"""Which sample goes where: a partition, balanced, the same on every rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.learner.plan import epoch_order, microbatches, minibatches, shares

pytestmark = pytest.mark.unit

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 200))
def test_micro_batches_are_a_partition_with_equal_passes(lengths, ranks, limit):
    members = list(range(0, len(lengths), 2))
    plans = microbatches(members, lengths, ranks, limit)
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(i for plan in plans for group in plan for i in group) == members
    for group in (group for plan in plans for group in plan if len(group) > 1):
        assert len(group) * max(lengths[i] for i in group) <= limit


@given(LENGTHS, st.integers(1, 5))
def test_shares_are_balanced_to_one_sample(lengths, ranks):
    loads = [sum(lengths[i] for i in part) for part in shares(range(len(lengths)), lengths, ranks)]
    assert max(loads) - min(loads) <= max(lengths)


def test_minibatches_depend_on_the_seed_alone():
    first, again = minibatches(10, 4, [7, 3]), minibatches(10, 4, [7, 3])
    assert [m.tolist() for m in first] == [m.tolist() for m in again]
    assert [len(m) for m in first] == [4, 4, 2]
    assert sorted(np.concatenate(first)) == list(range(10))
    assert [m.tolist() for m in first] != [m.tolist() for m in minibatches(10, 4, [7, 4])]
    assert {tuple(epoch_order(3, epoch, [7, 3])) for epoch in range(20)} > {(0, 1, 2)}
