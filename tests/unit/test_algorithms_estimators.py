"""Critic-free advantages: by hand, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.estimators import GROUP_ESTIMATORS, has_signal

pytestmark = pytest.mark.unit

NAMES = sorted(GROUP_ESTIMATORS)


def estimate(name, returns, groups):
    returns = torch.as_tensor(returns, dtype=torch.float64)
    return GROUP_ESTIMATORS[name](returns, torch.as_tensor(groups))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 1, 0, 0, 1: mean 1/2, sample variance 4 * (1/4) / 3 = 1/3. The others' mean is 1/3 for a 1 and 2/3 for a 0.
        ("grpo", math.sqrt(3) / 2),
        ("rloo", 2 / 3),
        ("grpo_no_std", 1 / 2),
        ("dr_grpo", 1 / 2),
        ("reinforce_pp_baseline", 1 / 2),
    ],
)
def test_two_right_and_two_wrong(name, expected):
    found = estimate(name, [1.0, 0.0, 0.0, 1.0], [7, 7, 7, 7]).tolist()
    assert found == pytest.approx([expected, -expected, -expected, expected], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Group 4 (first, third and last): 1, 2, 6, mean 3, sample variance (4 + 1 + 9) / 2 = 7.
        # Group 2: 0, 4, mean 2, sample variance 8.
        ("grpo", [-2 / 7**0.5, -2 / 8**0.5, -1 / 7**0.5, 2 / 8**0.5, 3 / 7**0.5]),
        ("rloo", [1 - 4, 0 - 4, 2 - 3.5, 4 - 0, 6 - 1.5]),
        ("grpo_no_std", [-2, -2, -1, 2, 3]),
    ],
)
def test_groups_of_different_sizes_in_any_order(name, expected):
    found = estimate(name, [1.0, 0.0, 2.0, 4.0, 6.0], [4, 2, 4, 2, 4]).tolist()
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6 + 0.1])
def test_a_group_without_signal_gives_exactly_zero(name, value):
    # Three equal returns, whose mean in floating point need not be their value; and a group of one.
    assert estimate(name, [value, value, 5.0, value], [1, 1, 0, 1]).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", NAMES)
def test_rounding_is_no_signal_and_a_small_difference_is(name):
    returns = torch.tensor([0.1, 0.1, 0.7, 0.7])
    returns[1] += 1e-8  # the neighbour in float32
    assert estimate(name, returns, [0, 0, 1, 1]).tolist() == [0.0] * 4
    assert estimate(name, [0.1, 0.1001], [0, 0]).abs().min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_gives_nothing_and_nan_stays_nan(name):
    assert estimate(name, [], torch.zeros(0, dtype=torch.int64)).shape == (0,)
    found = estimate(name, [math.nan, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert found[:2].isnan().all()  # the learner refuses it: a broken reward must not pass as one without signal
    assert found[2:].isfinite().all()


def test_signal_by_hand():
    returns = torch.tensor([1.0, 1.0, 2.0, 3.0, 9.0], dtype=torch.float64)
    assert has_signal(returns, torch.tensor([5, 5, 8, 8, 6])).tolist() == [False, False, True, True, False]


@st.composite
def samples(draw):
    """(returns, groups): up to 12 samples in up to 4 groups, half-integer returns."""
    size = draw(st.integers(1, 12))
    halves = draw(st.lists(st.integers(-20, 20), min_size=size, max_size=size))
    groups = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return torch.tensor(halves, dtype=torch.float64) / 2, torch.tensor(groups)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=samples(), shift=st.integers(-50, 50), scale=st.floats(0.1, 100))
def test_shift_scale_and_sum(name, data, shift, scale):
    returns, groups = data
    plain = estimate(name, returns, groups)
    torch.testing.assert_close(estimate(name, returns + shift, groups), plain, rtol=1e-9, atol=1e-9)
    expected = plain if name == "grpo" else scale * plain
    torch.testing.assert_close(estimate(name, scale * returns, groups), expected, rtol=1e-9, atol=1e-9)
    for group in groups.unique():
        assert plain[groups == group].sum().item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=samples(), random=st.randoms(use_true_random=False))
def test_neither_order_nor_other_groups_nor_their_numbers_matter(name, data, random):
    returns, groups = data
    plain = estimate(name, returns, groups)
    order = torch.tensor(random.sample(range(len(returns)), len(returns)))
    mixed = estimate(name, returns[order], 1000 - 7 * groups[order])
    torch.testing.assert_close(mixed, plain[order], rtol=1e-12, atol=1e-12)
    own = groups == groups[0]
    torch.testing.assert_close(estimate(name, returns[own], groups[own]), plain[own], rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(data=samples())
def test_grpo_has_the_sample_variance_one_and_rloo_leaves_one_out(data):
    returns, groups = data
    scaled, left_out = estimate("grpo", returns, groups), estimate("rloo", returns, groups)
    for i, group in enumerate(groups.tolist()):
        own = groups == group
        if own.sum() > 1 and returns[own].unique().numel() > 1:
            assert scaled[own].var().item() == pytest.approx(1.0)
            own[i] = False
            assert left_out[i].item() == pytest.approx((returns[i] - returns[own].mean()).item(), abs=1e-9)
