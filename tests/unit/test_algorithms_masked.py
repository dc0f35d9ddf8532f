"""Masked sums, means and moments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.masked import Moments, masked_mean, masked_sum

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf


def test_sum_and_mean_skip_padding():
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, INF, -INF]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask).item() == 7.0  # 1 + 2 + 4
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)


def test_padding_gets_no_gradient():
    x = torch.tensor([[1.0, NAN]], requires_grad=True)
    masked_mean(x, torch.tensor([[True, False]])).backward()
    assert x.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_nothing_gives_zero(shape):
    x, mask = torch.full(shape, NAN), torch.zeros(shape, dtype=torch.bool)
    assert masked_sum(x, mask).item() == 0.0
    assert masked_mean(x, mask).item() == 0.0
    moments = Moments.of(x, mask)
    assert (moments.count, moments.mean, moments.std) == (0.0, 0.0, 0.0)


def test_moments_by_hand():
    # 2, 4, 4, 6: sum 16, squares 4 + 16 + 16 + 36 = 72; mean 4, variance 72 / 4 - 16 = 2.
    moments = Moments.of(torch.tensor([[2.0, 4.0, 4.0, 6.0, NAN]]), torch.tensor([[True] * 4 + [False]]))
    assert moments == Moments(count=4.0, total=16.0, total_squares=72.0)
    assert moments.mean == 4.0
    assert moments.std == pytest.approx(math.sqrt(2))


def test_rounding_never_makes_the_variance_negative():
    # Three times 0.1: rounding puts the mean of the squares just below the square of the mean.
    one = Moments(1.0, 0.1, 0.1**2)
    moments = one + one + one
    assert moments.total_squares / moments.count < moments.mean**2
    assert moments.std == 0.0


def test_moments_keep_a_small_deviation_on_a_large_mean():
    # 10000 +- 0.5: in float32 both the squares (1e8) and their difference (0.25) would be lost.
    x = torch.tensor([[9999.5, 10000.5] * 500])
    moments = Moments.of(x, torch.ones_like(x, dtype=torch.bool))
    assert moments.std == pytest.approx(0.5, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    cut=st.integers(0, 40),
)
def test_moments_of_parts_equal_the_whole(values, cut):
    x = torch.tensor([values])
    mask = torch.ones_like(x, dtype=torch.bool)
    parts = Moments.of(x[:, :cut], mask[:, :cut]) + Moments.of(x[:, cut:], mask[:, cut:])
    assert parts.count == len(values)
    assert parts.mean == pytest.approx(x.double().mean().item(), rel=1e-9, abs=1e-9)
    assert parts.std == pytest.approx(x.double().std(correction=0).item(), rel=1e-6, abs=1e-4)
