"""Per-token rewards, generalised advantage estimation, whitening."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.advantages import gae, token_rewards, whiten
from rlhf_ray.algorithms.masked import Moments

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf
GARBAGE = (NAN, INF, -INF, 1e30)


def prefix_mask(lengths, time):
    return torch.arange(time) < torch.tensor(lengths)[:, None]


def test_score_lands_on_the_last_real_token():
    mask = prefix_mask([3, 1, 0], 3)
    rewards = token_rewards(torch.tensor([5.0, -1.0, NAN]), mask, None, 0.0)
    assert rewards.tolist() == [[0.0, 0.0, 5.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_kl_is_subtracted_from_every_real_token():
    mask = prefix_mask([2, 1], 3)
    kl = torch.tensor([[1.0, -2.0, NAN], [4.0, INF, NAN]])
    rewards = token_rewards(torch.tensor([5.0, 1.0]), mask, kl, 0.5)
    # Row 0: 0 - 0.5 * 1, 5 - 0.5 * -2. Row 1: 1 - 0.5 * 4.
    assert rewards.tolist() == [[-0.5, 6.0, 0.0], [-1.0, 0.0, 0.0]]


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5, so the decay is 0.25. Row 0 has three tokens, row 1 two and garbage.
    rewards = torch.tensor([[0.0, 0.0, 4.0], [1.0, 2.0, NAN]])
    values = torch.tensor([[1.0, 2.0, 2.0], [2.0, 4.0, INF]])
    advantages, returns = gae(rewards, values, prefix_mask([3, 2], 3), gamma=0.5, gae_lambda=0.5)
    # Row 0: d2 = 4 + 0 - 2 = 2,       d1 = 0 + 0.5 * 2 - 2 = -1,     d0 = 0 + 0.5 * 2 - 1 = 0
    #        A2 = 2,                   A1 = -1 + 0.25 * 2 = -0.5,     A0 = 0 + 0.25 * -0.5 = -0.125
    # Row 1: d1 = 2 + 0 - 4 = -2,      d0 = 1 + 0.5 * 4 - 2 = 1
    #        A1 = -2,                  A0 = 1 + 0.25 * -2 = 0.5
    assert advantages.tolist() == [[-0.125, -0.5, 2.0], [0.5, -2.0, 0.0]]
    assert returns.tolist() == [[0.875, 1.5, 4.0], [2.5, 2.0, 0.0]]


def test_gae_limits():
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 0.125]])
    mask = prefix_mask([3], 3)
    # lambda 1: returns are the discounted sums of rewards: 3, 2 + 0.5 * 3, 1 + 0.5 * 3.5.
    assert gae(rewards, values, mask, 0.5, 1.0)[1].tolist() == [[2.75, 3.5, 3.0]]
    # lambda 0: advantages are the one-step errors: 1 + 0.125 - 0.5, 2 + 0.0625 - 0.25, 3 - 0.125.
    assert gae(rewards, values, mask, 0.5, 0.0)[0].tolist() == [[0.625, 1.8125, 2.875]]


@pytest.mark.parametrize("shape", [(2, 1), (2, 0), (0, 4)])
def test_gae_of_nothing(shape):
    advantages, returns = gae(torch.full(shape, NAN), torch.full(shape, NAN), torch.zeros(shape).bool(), 1.0, 0.95)
    assert advantages.shape == returns.shape == shape
    assert not advantages.any()
    assert not returns.any()


def test_gae_leaves_its_inputs_alone_and_carries_no_gradient():
    rewards = torch.ones(2, 3)
    values = torch.ones(2, 3, requires_grad=True)
    advantages, returns = gae(rewards, values, prefix_mask([3, 2], 3), 1.0, 0.95)
    assert rewards.eq(1).all()
    assert values.eq(1).all()
    assert not advantages.requires_grad
    assert not returns.requires_grad


def reference_gae(rewards, values, gamma, gae_lambda):
    """Equation 16 of Schulman et al. 2015 as written: the sum over all later one-step errors. One row, float64."""
    next_values = [*values, 0.0][1:]
    deltas = [r + gamma * after - now for r, now, after in zip(rewards, values, next_values, strict=True)]
    return [
        sum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@st.composite
def padded_batches(draw):
    """(rewards, values, mask), `[batch, time]` with zeros at padding."""
    time = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(0, time), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = prefix_mask(lengths, time)
    rewards, values = (torch.randn(len(lengths), time, generator=generator) * mask for _ in range(2))
    return rewards, values, mask


@settings(max_examples=50, deadline=None)
@given(padded_batches(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_equation_16(batch, gamma, gae_lambda):
    rewards, values, mask = batch
    advantages, returns = gae(rewards, values, mask, gamma, gae_lambda)
    for row, length in enumerate(mask.sum(1).tolist()):
        expected = reference_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, gae_lambda)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        assert not advantages[row, length:].any()
    torch.testing.assert_close(returns, advantages + values)


@settings(max_examples=50, deadline=None)
@given(padded_batches(), st.sampled_from(GARBAGE), st.integers(0, 3), st.randoms(use_true_random=False))
def test_neither_padding_nor_order_matters(batch, garbage, extra, random):
    rewards, values, mask = batch
    rows, time = mask.shape
    scores = torch.arange(rows, dtype=torch.float32)
    order = random.sample(range(rows), rows)

    def spoil(x):
        return torch.cat([torch.where(mask, x, garbage), torch.full((rows, extra), garbage)], dim=1)[order]

    longer = torch.cat([mask, torch.zeros(rows, extra, dtype=torch.bool)], dim=1)[order]
    moments, spoiled_moments = Moments.of(rewards, mask), Moments.of(spoil(rewards), longer)
    assert spoiled_moments.std == pytest.approx(moments.std, abs=1e-9)
    pairs = [
        (gae(rewards, values, mask, 0.9, 0.8)[0], gae(spoil(rewards), spoil(values), longer, 0.9, 0.8)[0]),
        (token_rewards(scores, mask, values, 0.1), token_rewards(scores[order], longer, spoil(values), 0.1)),
        (whiten(rewards, mask, moments), whiten(spoil(rewards), longer, moments)),
    ]
    for clean, spoiled in pairs:
        assert torch.equal(spoiled[:, :time], clean[order])
        assert not spoiled[:, time:].any()


def test_whiten_by_hand():
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    x = torch.tensor([[1.0, 3.0, NAN], [5.0, 7.0, INF]])
    mask = prefix_mask([2, 2], 3)
    moments = Moments.of(x, mask)
    s = math.sqrt(5)
    expected = torch.tensor([[-3 / s, -1 / s, 0.0], [1 / s, 3 / s, 0.0]])
    torch.testing.assert_close(whiten(x, mask, moments), expected)
    # Not centred: the mean square is 16 + 5 = 21.
    expected = torch.where(mask, x / math.sqrt(21), 0.0)
    torch.testing.assert_close(whiten(x, mask, moments, centre=False), expected)


def test_whitened_advantages_have_mean_0_and_std_1():
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mask = prefix_mask([10, 3] * 8, 10)
    whitened = Moments.of(whiten(x, mask, Moments.of(x, mask)), mask)
    assert whitened.mean == pytest.approx(0.0, abs=1e-6)
    assert whitened.std == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.567])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_whitening_a_constant_gives_zero(constant, length):
    x, mask = torch.full((3, 7), constant), prefix_mask([length] * 3, 7)
    assert whiten(x, mask, Moments.of(x, mask)).abs().max() < 1e-6


def test_whitening_does_not_blow_up_rounding():
    almost = torch.tensor([[0.1, 0.1 + 1e-8] * 8])  # neighbours in float32
    mask = torch.ones_like(almost, dtype=torch.bool)
    assert almost.unique().numel() == 2
    assert whiten(almost, mask, Moments.of(almost, mask)).abs().max() < 1e-3
