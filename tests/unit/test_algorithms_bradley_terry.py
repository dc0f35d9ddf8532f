"""The pairwise loss by hand and by its symmetries; the calibration of probabilities that are right, and wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.bradley_terry import calibration_error, calibration_histogram, pairwise_loss

pytestmark = pytest.mark.unit

SCORES = st.lists(st.tuples(st.floats(-8, 8, width=32), st.floats(-8, 8, width=32)), min_size=1, max_size=12)


def numbers(result):
    return {name: value.item() for name, value in vars(result).items()}


def test_by_hand():
    chosen = torch.tensor([math.log(3), 1.0, 0.0], requires_grad=True)
    result = pairwise_loss(chosen, torch.tensor([0.0, 1.0, math.log(3)]))
    result.loss_sum.backward()
    # Margins log 3, 0, -log 3: sigmoid 3/4, 1/2, 1/4. A tie is not correct. The gradient is sigmoid - 1.
    expected = -math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 4)
    assert numbers(result) == pytest.approx({"loss_sum": expected, "correct": 1, "margin_sum": 0.0}, abs=1e-6)
    assert chosen.grad.tolist() == pytest.approx([-0.25, -0.5, -0.75])


def test_a_margin_asks_for_more_by_hand():
    chosen, rejected = torch.tensor([math.log(6), 1.0]), torch.tensor([0.0, 1.0])
    result = pairwise_loss(chosen, rejected, margin=torch.tensor([math.log(2), 0.0]))
    # log 6 - log 2 = log 3: sigmoid 3/4. Accuracy and the margin shown are of the scores themselves.
    expected = -math.log(3 / 4) - math.log(1 / 2)
    assert numbers(result) == pytest.approx({"loss_sum": expected, "correct": 1, "margin_sum": math.log(6)}, abs=1e-6)


def test_smoothing_and_centring_by_hand():
    chosen, rejected = torch.tensor([math.log(3)]), torch.tensor([0.0])
    smoothed = pairwise_loss(chosen, rejected, label_smoothing=0.1).loss_sum.item()
    assert smoothed == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))
    centred = pairwise_loss(chosen, rejected, center_coef=0.01).loss_sum.item()
    assert centred == pytest.approx(-math.log(3 / 4) + 0.01 * math.log(3) ** 2)


@settings(max_examples=40, deadline=None)
@given(scores=SCORES, shift=st.floats(-5, 5), smoothing=st.sampled_from([0.0, 0.2, 0.5]), margin=st.floats(0, 3))
def test_invariances(scores, shift, smoothing, margin):
    chosen, rejected = torch.tensor(scores, dtype=torch.float64).unbind(1)
    margins = torch.full_like(chosen, margin)

    def loss(better, worse, smoothing=smoothing, center=0.0):
        return pairwise_loss(better, worse, margins[: len(better)], smoothing, center).loss_sum.item()

    whole = loss(chosen, rejected)
    assert loss(chosen + shift, rejected + shift) == pytest.approx(whole, rel=1e-9, abs=1e-9)
    order = torch.arange(len(chosen)).flip(0)
    assert loss(chosen[order], rejected[order]) == pytest.approx(whole, rel=1e-9)
    parts = loss(chosen[:1], rejected[:1]) + loss(chosen[1:], rejected[1:])
    assert parts == pytest.approx(whole, rel=1e-9)
    # Labels that are all swapped are the other way round.
    assert loss(chosen, rejected, smoothing=1 - smoothing) == pytest.approx(loss(rejected, chosen), rel=1e-9)
    # Centring alone sees a common shift, and is least where a pair's scores are opposite.
    middle = (chosen + rejected) / 2
    assert loss(chosen - middle, rejected - middle, center=1.0) == pytest.approx(whole, rel=1e-6, abs=1e-9)


def test_extreme_scores_stay_finite_and_nothing_gives_zero():
    result = pairwise_loss(torch.tensor([-1e4, 1e4]), torch.tensor([0.0, 0.0]))
    assert result.loss_sum.item() == pytest.approx(1e4)
    empty = torch.zeros(0)
    assert set(numbers(pairwise_loss(empty, empty, empty, 0.1, 0.1)).values()) == {0}
    assert not pairwise_loss(empty.requires_grad_(), empty).margin_sum.requires_grad


def test_calibration_by_hand():
    # Confidence 2/3 (bin 3) three times, right twice: calibrated. 24/25 (bin 9) twice, right once: off by 0.46.
    two, many = math.log(2), math.log(24)
    histogram = calibration_histogram(torch.tensor([two, two, -two, many, -many]))
    assert histogram[3].tolist() == pytest.approx([3, 2.0, 2])
    assert histogram[9].tolist() == pytest.approx([2, 1.92, 1])
    assert histogram.sum(0)[0] == 5
    assert calibration_error(histogram) == pytest.approx(2 / 5 * 0.46, rel=1e-6)


def test_calibration_adds_up_over_parts_and_knows_the_ends():
    differences = torch.linspace(-40, 40, 101)
    parts = calibration_histogram(differences[:30]) + calibration_histogram(differences[30:])
    torch.testing.assert_close(parts, calibration_histogram(differences))
    assert calibration_error(calibration_histogram(torch.full((5,), 1e4))) == 0
    assert calibration_error(calibration_histogram(torch.full((5,), -1e4))) == 1
    assert calibration_error(calibration_histogram(torch.zeros(0))) == 0


def test_answers_drawn_with_the_stated_probability_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    differences = 2 * torch.randn(20_000, generator=generator)
    flipped = torch.rand(20_000, generator=generator) > torch.sigmoid(differences)
    assert calibration_error(calibration_histogram(torch.where(flipped, -differences, differences))) < 0.02
    assert calibration_error(calibration_histogram(differences.abs())) > 0.15  # always right, though not so sure
