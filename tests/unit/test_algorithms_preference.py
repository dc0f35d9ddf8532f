"""The losses on preference pairs: by hand, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.preference import Responses, preference_loss

pytestmark = pytest.mark.unit

LOSSES = ("sigmoid", "ipo", "hinge")


def responses(logprobs, reference, tokens=1.0):
    logprobs, reference = torch.tensor(logprobs), torch.tensor(reference)
    return Responses(logprobs, reference, torch.as_tensor(tokens, dtype=torch.float32).expand(logprobs.shape))


def one_pair(h, loss, beta=0.5, label_smoothing=0.0, tokens=(1.0, 1.0)):
    """(result, gradients by the chosen and by the rejected log-prob) of a pair whose log-ratios differ by `h`."""
    chosen = Responses(torch.tensor([h - 3.0], requires_grad=True), torch.tensor([-3.0]), torch.tensor([tokens[0]]))
    rejected = Responses(torch.tensor([-2.0], requires_grad=True), torch.tensor([-2.0]), torch.tensor([tokens[1]]))
    result = preference_loss(chosen, rejected, loss, beta, label_smoothing)
    result.loss_sum.backward()
    return result, chosen.logprobs.grad.item(), rejected.logprobs.grad.item()


@pytest.mark.parametrize(
    ("loss", "h", "expected", "slope"),
    [
        # sigmoid(1) = 0.7310586: the loss is -log of it, its slope by h is -beta * sigmoid(-1).
        ("sigmoid", 2.0, 0.3132617, -0.5 * 0.2689414),
        ("sigmoid", -2.0, 1.3132617, -0.5 * 0.7310586),
        # (h - 1)^2 at beta 1/2.
        ("ipo", 3.0, 4.0, 4.0),
        ("ipo", 1.0, 0.0, 0.0),
        # max(0, 1 - h / 2).
        ("hinge", 1.0, 0.5, -0.5),
        ("hinge", 4.0, 0.0, 0.0),
    ],
)
def test_losses_by_hand(loss, h, expected, slope):
    result, by_chosen, by_rejected = one_pair(h, loss)
    assert result.loss_sum.item() == pytest.approx(expected, abs=1e-6)
    assert by_chosen == pytest.approx(slope, abs=1e-6)
    assert by_rejected == pytest.approx(-slope, abs=1e-6)
    assert result.correct.item() == (h > 0)
    assert result.chosen_reward_sum.item() == pytest.approx(0.5 * h)
    assert result.rejected_reward_sum.item() == 0


def test_label_smoothing_is_the_expected_loss_when_labels_are_swapped_that_often():
    straight, swapped = one_pair(1.4, "sigmoid")[0].loss_sum, one_pair(-1.4, "sigmoid")[0].loss_sum
    smoothed, slope, _ = one_pair(1.4, "sigmoid", label_smoothing=0.2)
    assert smoothed.loss_sum.item() == pytest.approx(0.8 * straight.item() + 0.2 * swapped.item())
    # Least where sigmoid(beta h) is the share of right labels: log(0.8 / 0.2) / beta.
    assert one_pair(math.log(4) / 0.5, "sigmoid", label_smoothing=0.2)[1] == pytest.approx(0, abs=1e-6)
    assert slope < 0


def test_ipo_counts_per_token_and_the_others_do_not():
    # Log-ratios 4 over 2 tokens against 0 over 5: h' = 2, (2 - 1)^2.
    assert one_pair(4.0, "ipo", tokens=(2.0, 5.0))[0].loss_sum.item() == pytest.approx(1.0)
    for loss in ("sigmoid", "hinge"):
        long, short = one_pair(0.7, loss, tokens=(9.0, 2.0))[0], one_pair(0.7, loss)[0]
        assert long.loss_sum.item() == short.loss_sum.item()


@pytest.mark.parametrize("loss", LOSSES)
def test_at_its_reference_every_policy_has_the_same_loss_and_no_reward(loss):
    chosen, rejected = responses([-7.0, -90.0], [-7.0, -90.0]), responses([-1.0, -2.0], [-1.0, -2.0])
    result = preference_loss(chosen, rejected, loss, beta=0.1)
    assert result.loss_sum.item() == pytest.approx(2 * {"sigmoid": math.log(2), "ipo": 25.0, "hinge": 1.0}[loss])
    assert (result.correct.item(), result.chosen_reward_sum.item(), result.rejected_reward_sum.item()) == (0, 0, 0)


def test_far_apart_pairs_stay_finite():
    for h in (-1e4, 1e4):
        result, by_chosen, _ = one_pair(h, "sigmoid")
        assert math.isfinite(result.loss_sum.item())
        assert math.isfinite(by_chosen)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_pairs_are_a_zero_with_a_gradient(loss):
    empty = torch.zeros(0, requires_grad=True)
    side = Responses(empty, torch.zeros(0), torch.zeros(0))
    result = preference_loss(side, side, loss)
    result.loss_sum.backward()
    assert [value.item() for value in vars(result).values()] == [0, 0, 0, 0]


LOGPROBS = st.floats(-50, 0, width=32)
PAIR = st.tuples(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS, st.integers(1, 40), st.integers(1, 40))


def sums(pairs, loss, shift=0.0):
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)]
    chosen = Responses(columns[0] + shift, columns[1] + shift, columns[4])
    rejected = Responses(columns[2] + shift, columns[3] + shift, columns[5])
    return [value.item() for value in vars(preference_loss(chosen, rejected, loss)).values()]


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(PAIR, min_size=2, max_size=8), cut=st.integers(1, 7), loss=st.sampled_from(LOSSES))
def test_sums_do_not_depend_on_order_or_on_micro_batches(pairs, cut, loss):
    whole, cut = sums(pairs, loss), min(cut, len(pairs) - 1)
    parts = [one + other for one, other in zip(sums(pairs[:cut], loss), sums(pairs[cut:], loss), strict=True)]
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert sums(pairs[::-1], loss) == pytest.approx(whole, rel=1e-9, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(PAIR, min_size=1, max_size=4), shift=st.floats(-20, 20), loss=st.sampled_from(LOSSES))
def test_what_policy_and_reference_share_cancels(pairs, shift, loss):
    # `correct` is left out: a margin of rounding noise may fall on either side of zero.
    shifted, plain = sums(pairs, loss, shift), sums(pairs, loss)
    assert [shifted[0], *shifted[2:]] == pytest.approx([plain[0], *plain[2:]], rel=1e-9, abs=1e-9)
