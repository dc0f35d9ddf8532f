"""The losses: by hand, and as sums that padding, order and micro-batches do not change."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.losses import Clip, policy_loss, sft_loss, value_loss

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf
CLIP = Clip(0.2, 0.2)


def numbers(result):
    return {name: value.item() for name, value in vars(result).items()}


def one_token(ratio, advantage, clip=CLIP):
    """(loss, gradient with respect to the log-prob) of a single token."""
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = policy_loss(
        logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1, dtype=torch.bool), clip
    )
    result.loss_sum.backward()
    return result, logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # Within the range: -ratio * A, whose derivative by the log-prob is itself.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 1.0, -1.0, -1.0),
        # Moved far in the direction of the advantage: clipped at 1.2 or 0.8, no gradient.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        # Moved far against it: the clip does not help, the full gradient brings it back.
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_policy_clip_by_hand(ratio, advantage, loss, gradient):
    result, slope = one_token(ratio, advantage)
    assert result.loss_sum.item() == pytest.approx(loss)
    assert slope == pytest.approx(gradient)
    assert result.clipped_tokens.item() == (gradient == 0)


def test_policy_statistics_by_hand():
    # Ratios 2 and 1/4 in row 0, 1 in row 1, and garbage.
    logprobs = torch.tensor([[math.log(2), -math.log(4), NAN], [-1.0, INF, 1e30]])
    old = torch.tensor([[0.0, 0.0, INF], [-1.0, NAN, -1e30]])
    advantages = torch.tensor([[1.0, 1.0, NAN], [-3.0, INF, 1.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # Losses: -1.2 (clipped), -0.25, 3. k3 of (old || new) with l = old - new: exp(-l) - 1 + l,
    # so 2 - 1 - log 2, then 1/4 - 1 + 2 log 2, then 0.
    approx_kl = 0.25 + math.log(2)
    assert numbers(policy_loss(logprobs, old, advantages, mask, CLIP)) == pytest.approx(
        {"loss_sum": 1.55, "clipped_tokens": 1, "ratio_sum": 3.25, "ratio_max": 2.0, "approx_kl_sum": approx_kl}
    )


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [500.0, -500.0])
def test_an_extreme_ratio_stays_finite(advantage, log_ratio):
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, CLIP)
    result.loss_sum.backward()
    assert all(math.isfinite(number) for number in numbers(result).values())
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize(
    ("value", "loss", "gradient", "clipped"),
    [
        # V_old = 1, R = 3, range 0.5, so the value counts as at most 1.5 and at least 0.5.
        (1.25, 0.5 * 1.75**2, -1.75, 0),  # within the range: plain
        (2.5, 0.5 * 1.5**2, 0.0, 1),  # too far towards the return: (1.5 - 3)^2, no gradient
        (-1.0, 0.5 * 4.0**2, -4.0, 0),  # away from it: the larger, unclipped error counts
    ],
)
def test_value_clip_by_hand(value, loss, gradient, clipped):
    values = torch.tensor([[value, NAN]], requires_grad=True)
    old, returns = torch.tensor([[1.0, INF]]), torch.tensor([[3.0, NAN]])
    result = value_loss(values, old, returns, torch.tensor([[True, False]]), 0.5)
    result.loss_sum.backward()
    assert numbers(result) == pytest.approx(
        {"loss_sum": loss, "clipped_tokens": clipped, "error_sum_squares": (value - 3) ** 2}
    )
    assert values.grad.tolist() == [pytest.approx([gradient, 0.0])]


def test_value_loss_without_a_clip_is_half_the_squared_error():
    values = torch.tensor([[2.5]], requires_grad=True)
    result = value_loss(values, torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[True]]), None)
    result.loss_sum.backward()
    assert numbers(result) == {"loss_sum": 0.125, "clipped_tokens": 0, "error_sum_squares": 0.25}
    assert values.grad.item() == -0.5


def test_sft_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-0.5, INF, -INF]], requires_grad=True)
    loss = sft_loss(logprobs, torch.tensor([[True, True, False], [True, False, False]]))
    loss.backward()
    assert loss.item() == 3.5
    assert logprobs.grad.tolist() == [[-1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_nothing_gives_zero(shape):
    garbage, mask = torch.full(shape, NAN), torch.zeros(shape, dtype=torch.bool)
    assert set(numbers(policy_loss(garbage, garbage, garbage, mask, CLIP)).values()) == {0}
    assert set(numbers(value_loss(garbage, garbage, garbage, mask, 0.2)).values()) == {0}
    assert sft_loss(garbage, mask).item() == 0


def test_only_the_loss_carries_a_gradient_and_only_to_what_is_trained():
    x, y, z = torch.ones(3, 1, 2).requires_grad_().unbind()
    mask = torch.ones(1, 2, dtype=torch.bool)
    for result in (policy_loss(x, y, z, mask, CLIP), value_loss(x, y, z, mask, 0.2)):
        assert {name for name, value in vars(result).items() if value.requires_grad} == {"loss_sum"}
        reached = torch.autograd.grad(result.loss_sum, [x, y, z], allow_unused=True)
        assert [gradient is not None for gradient in reached] == [True, False, False]


def run_policy(logprobs, old, target, mask):
    return policy_loss(logprobs, old, target, mask, CLIP)


def run_value(values, old, target, mask):
    return value_loss(values, old, target, mask, 0.2)


@dataclasses.dataclass
class SFTResult:
    loss_sum: torch.Tensor


def run_sft(logprobs, old, target, mask):
    return SFTResult(sft_loss(logprobs, mask))


LOSSES = (run_policy, run_value, run_sft)


@st.composite
def padded_batches(draw):
    """Three float tensors and a mask, all `[batch, time]`; the first tensor is what is trained."""
    time = draw(st.integers(1, 8))
    lengths = torch.tensor(draw(st.lists(st.integers(0, time), min_size=1, max_size=6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    trained, old, target = torch.randn(3, len(lengths), time, generator=generator)
    return trained * 0.5, old * 0.5, target, torch.arange(time) < lengths[:, None]


def with_gradient(loss, trained, *rest):
    """(numbers, gradient) of a loss on one batch."""
    leaf = trained.clone().requires_grad_()
    result = loss(leaf, *rest)
    result.loss_sum.backward()
    return numbers(result), leaf.grad


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=40, deadline=None)
@given(batch=padded_batches(), data=st.data())
def test_micro_batches_add_up(loss, batch, data):
    rows = len(batch[0])
    cut = data.draw(st.integers(0, rows))
    whole, gradient = with_gradient(loss, *batch)
    (first, first_gradient), (second, second_gradient) = (
        with_gradient(loss, *(x[part] for x in batch)) for part in (slice(cut), slice(cut, rows))
    )
    torch.testing.assert_close(torch.cat([first_gradient, second_gradient]), gradient, rtol=1e-6, atol=1e-6)
    for name, number in whole.items():
        parts = max(first[name], second[name]) if name == "ratio_max" else first[name] + second[name]
        assert parts == pytest.approx(number, rel=1e-6, abs=1e-5), name
    assert first["loss_sum"] + second["loss_sum"] == pytest.approx(whole["loss_sum"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=40, deadline=None)
@given(
    batch=padded_batches(),
    garbage=st.sampled_from([NAN, INF, -INF, 1e30]),
    extra=st.integers(0, 3),
    random=st.randoms(use_true_random=False),
)
def test_neither_padding_nor_order_matters(loss, batch, garbage, extra, random):
    *tensors, mask = batch
    rows, time = mask.shape
    order = random.sample(range(rows), rows)
    tail = torch.full((rows, extra), garbage)
    spoiled = [torch.cat([torch.where(mask, x, garbage), tail], dim=1)[order] for x in tensors]
    longer = torch.cat([mask, torch.zeros(rows, extra, dtype=torch.bool)], dim=1)[order]

    clean_numbers, clean_gradient = with_gradient(loss, *tensors, mask)
    spoiled_numbers, spoiled_gradient = with_gradient(loss, *spoiled, longer)
    assert spoiled_numbers == pytest.approx(clean_numbers, rel=1e-5, abs=1e-5)
    assert torch.equal(spoiled_gradient[:, :time], clean_gradient[order])
    assert not spoiled_gradient[:, time:].any()
    assert not spoiled_gradient[~longer].any()
