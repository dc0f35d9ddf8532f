"""Variants of the clipped surrogate: clip-higher, dual clip, GSPO's ratio, weights, truncated importance sampling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.losses import Clip, policy_loss, sequence_log_ratio, truncated_importance

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf
HIGHER, DUAL = Clip(0.2, 0.28), Clip(0.2, 0.2, dual=3.0)


def one_token(ratio, advantage, clip):
    """(loss, gradient with respect to the log-prob, clipped tokens)."""
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, clip)
    result.loss_sum.backward()
    return result.loss_sum.item(), logprobs.grad.item(), result.clipped_tokens.item()


@pytest.mark.parametrize(
    ("clip", "ratio", "advantage", "loss", "gradient"),
    [
        (HIGHER, 1.25, 2.0, -2.5, -2.5),  # would be clipped at 1.2
        (HIGHER, 1.5, 2.0, -2.56, 0.0),  # 1.28 * 2
        (HIGHER, 0.5, -2.0, 1.6, 0.0),  # below it is 0.8 as ever
        (HIGHER, 1.5, -2.0, 3.0, 3.0),
        (DUAL, 2.0, -2.0, 4.0, 4.0),  # within 3 times
        (DUAL, 5.0, -2.0, 6.0, 0.0),  # 3 * 2, where the plain surrogate is 10
        (DUAL, 0.5, -2.0, 1.6, 0.0),
        (DUAL, 5.0, 2.0, -2.4, 0.0),  # good tokens know nothing of it
        (DUAL, 0.5, 2.0, -1.0, -1.0),
    ],
)
def test_clips_by_hand(clip, ratio, advantage, loss, gradient):
    found = one_token(ratio, advantage, clip)
    assert found == (pytest.approx(loss), pytest.approx(gradient), int(gradient == 0))


def test_the_sequence_ratio_by_hand():
    # Row 0: ratios 2 and 1/8, geometric mean 1/2. Row 1: one token of ratio 1.1, and garbage.
    logprobs = torch.tensor([[math.log(2), -math.log(8), NAN], [math.log(1.1), INF, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[3.0, 3.0, NAN], [-1.0, NAN, INF]])
    result = policy_loss(logprobs, torch.zeros(2, 3), advantages, mask, Clip(0.2, 0.2), ratio="sequence")
    result.loss_sum.backward()
    # Row 0: -0.5 * 3 for both tokens (the clip does not help). Row 1: 1.1 * 1, which is within the range.
    assert result.loss_sum.item() == pytest.approx(-1.5 - 1.5 + 1.1)
    assert logprobs.grad.tolist() == [pytest.approx([-1.5, -1.5, 0.0]), pytest.approx([1.1, 0.0, 0.0])]
    assert result.ratio_sum.item() == pytest.approx(0.5 + 0.5 + 1.1)


def test_the_sequence_ratio_has_gspo_s_gradient():
    # GSPO: s = exp(mean of the log ratios), loss = -mean over responses of min(s * A, clip(s) * A).
    generator = torch.Generator().manual_seed(0)
    lengths, advantage = torch.tensor([4, 1, 3]), torch.tensor([0.7, -1.2, -0.4])
    mask = torch.arange(4) < lengths[:, None]
    old = torch.randn(3, 4, generator=generator) * 0.1
    plain = (torch.randn(3, 4, generator=generator) * 0.1).requires_grad_()
    ours = plain.detach().clone().requires_grad_()
    ratio = (torch.where(mask, plain - old, 0).sum(1) / lengths).exp()
    expected = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.9, 1.1)).sum()
    expected.backward()
    weights = mask / lengths[:, None]
    found = policy_loss(
        ours, old, advantage[:, None].expand(3, 4), mask, Clip(0.1, 0.1), weights=weights, ratio="sequence"
    )
    found.loss_sum.backward()
    assert found.loss_sum.item() == pytest.approx(expected.item())
    torch.testing.assert_close(ours.grad, plain.grad)


def test_weights_scale_losses_and_gradients_and_nothing_else():
    logprobs = torch.tensor([[0.1, -0.3, NAN]], requires_grad=True)
    mask, weights = torch.tensor([[True, True, False]]), torch.tensor([[0.5, 0.0, NAN]])
    plain = policy_loss(logprobs, torch.zeros(1, 3), torch.ones(1, 3), mask, HIGHER)
    weighted = policy_loss(logprobs, torch.zeros(1, 3), torch.ones(1, 3), mask, HIGHER, weights=weights)
    weighted.loss_sum.backward()
    assert weighted.loss_sum.item() == pytest.approx(-0.5 * math.exp(0.1))
    assert logprobs.grad.tolist() == [pytest.approx([-0.5 * math.exp(0.1), 0.0, 0.0])]
    assert weighted.ratio_sum == plain.ratio_sum
    assert weighted.approx_kl_sum == plain.approx_kl_sum


def test_importance_weights_by_hand():
    learner = torch.tensor([[math.log(0.5), math.log(0.5), math.log(0.1), 800.0, NAN]])
    engine = torch.tensor([[math.log(0.4), math.log(0.1), math.log(0.2), -800.0, INF]])
    mask = torch.tensor([[True, True, True, True, False]])
    # 0.5 / 0.4, 0.5 / 0.1 at its cap, 0.1 / 0.2, something without end at its cap, and padding.
    assert truncated_importance(learner, engine, mask, 2.0).tolist() == [pytest.approx([1.25, 2.0, 0.5, 2.0, 1.0])]


def test_importance_weights_carry_no_gradient():
    learner = torch.zeros(1, 2, requires_grad=True)
    assert not truncated_importance(learner, torch.ones(1, 2), torch.ones(1, 2).bool(), 2.0).requires_grad


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    cut=st.integers(0, 5),
    extra=st.integers(0, 3),
    garbage=st.sampled_from([NAN, INF, -INF, 1e30]),
)
def test_variants_add_up_over_micro_batches_whatever_the_padding(lengths, seed, cut, extra, garbage):
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    trained, old, advantages = 0.5 * torch.randn(3, *mask.shape, generator=torch.Generator().manual_seed(seed))

    def loss(rows, fill=0.0, width=5):
        cells = mask[rows]
        tail = torch.full((len(cells), width - 5), fill)
        tensors = [torch.cat([torch.where(cells, x[rows], fill), tail], 1) for x in (trained, old, advantages)]
        leaf = tensors[0].requires_grad_()
        padded = torch.cat([cells, torch.zeros(len(cells), width - 5, dtype=torch.bool)], 1)
        result = policy_loss(leaf, *tensors[1:], padded, Clip(0.1, 0.3, 1.5), ratio="sequence")
        result.loss_sum.backward()
        return result.loss_sum.item(), result.clipped_tokens.item(), leaf.grad[:, :5]

    whole, parts = loss(slice(None)), [loss(slice(cut), garbage, 5 + extra), loss(slice(cut, None), garbage, 5 + extra)]
    assert parts[0][0] + parts[1][0] == pytest.approx(whole[0], rel=1e-5, abs=1e-5)
    assert parts[0][1] + parts[1][1] == whole[1]
    torch.testing.assert_close(torch.cat([parts[0][2], parts[1][2]]), whole[2], rtol=1e-5, atol=1e-6)


def test_an_empty_response_has_no_ratio():
    nothing = torch.zeros(2, 3)
    assert torch.equal(sequence_log_ratio(nothing, nothing.bool()), nothing)
