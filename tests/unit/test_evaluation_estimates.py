"""Intervals against worked examples, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.evaluation.estimates import Estimate, WinRate, share_of, wilson
from rlhf_ray.evaluation.logprobs import kl, perplexity

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.8, 10, 0.4902, 0.9433), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.5, 100, 0.4038, 0.5962)],
)
def test_wilson_is_the_textbooks(share: float, count: int, low: float, high: float) -> None:
    assert wilson(share, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_a_proportion(count: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, count)) / count
    low, high = wilson(share, count)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    other_low, other_high = wilson(1 - share, count)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low), abs=1e-9)


def test_wilson_covers_the_truth_19_times_of_20() -> None:
    random = np.random.default_rng(0)
    draws = random.binomial(60, 0.9, size=4000)
    ends = np.array([wilson(wins / 60, 60) for wins in draws])
    assert 0.93 < ((ends[:, 0] <= 0.9) & (ends[:, 1] >= 0.9)).mean() < 0.975


def test_a_mean_leaves_out_what_is_missing() -> None:
    estimate = Estimate.mean(np.array([1.0, np.nan, 3.0, 5.0]))
    assert estimate is not None
    assert (estimate.value, estimate.count) == (3.0, 3)
    half = 1.959964 * 2.0 / math.sqrt(3)  # sample std 2
    assert (estimate.low, estimate.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert Estimate.mean(np.array([np.nan])) is None
    assert Estimate.mean(np.array([4.0])) == Estimate(4.0, count=1)


def test_a_ratio_with_equal_denominators_is_a_mean() -> None:
    values = np.array([1.0, 4.0, 2.0, 9.0])
    ratio, mean = Estimate.ratio(values, np.full(4, 2.0)), Estimate.mean(values / 2)
    assert ratio is not None
    assert mean is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((mean.value, mean.low, mean.high))


def test_a_ratio_weighs_responses_by_their_length() -> None:
    ratio = Estimate.ratio(np.array([10.0, 1.0]), np.array([10.0, 2.0]))
    assert ratio is not None
    assert ratio.value == pytest.approx(11 / 12)
    assert Estimate.ratio(np.array([0.0]), np.array([0.0])) is None


def test_a_ratios_interval_covers_the_truth() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        lengths = random.integers(5, 60, 80)
        nats = np.array([random.exponential(2.0) * length for length in lengths])  # the error is per response
        ratio = Estimate.ratio(nats, lengths)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 2.0 <= ratio.high
    assert 0.9 < held / 600 < 0.98


def test_win_rates_count_ties_as_halves_and_missing_ones_not_at_all() -> None:
    result = WinRate.of(np.array([2.0, 0.1, 0.0, -1.0, np.nan]))
    assert result == WinRate(wins=2, ties=1, losses=1, missing=1)
    assert result.estimate is not None
    assert result.estimate.value == pytest.approx(2.5 / 4)
    assert (result.estimate.low, result.estimate.high) == wilson(2.5 / 4, 4)
    assert WinRate.of(np.array([np.nan])).estimate is None


@given(st.lists(st.sampled_from([-1.0, 0.0, 2.0, math.nan]), min_size=1, max_size=40))
def test_the_other_model_wins_what_this_one_loses(gains: list[float]) -> None:
    ours, theirs = WinRate.of(np.array(gains)), WinRate.of(-np.array(gains))
    assert (ours.wins, ours.ties, ours.losses, ours.missing) == (
        theirs.losses, theirs.ties, theirs.wins, theirs.missing
    )  # fmt: skip
    if ours.estimate and theirs.estimate:
        assert ours.estimate.value + theirs.estimate.value == pytest.approx(1)


def test_shares_have_wilsons_interval() -> None:
    assert share_of(np.array([True, False, False, False])) == Estimate(0.25, *wilson(0.25, 4), 4)
    assert share_of(np.array([], bool)) is None


def test_kl_of_a_model_from_itself_is_zero() -> None:
    logprobs = [np.log(np.array([0.5, 0.25])), np.log(np.array([0.1]))]
    assert kl(logprobs, logprobs)["kl/response"] == Estimate(0.0, 0.0, 0.0, 2)


def test_kl_is_the_mean_log_ratio_per_response_and_per_token() -> None:
    policy = [np.log(np.array([0.5, 0.5])), np.log(np.array([0.8]))]
    reference = [np.log(np.array([0.25, 0.25])), np.log(np.array([0.4]))]
    measures = kl(policy, reference)
    per_response, per_token = measures["kl/response"], measures["kl/token"]
    assert per_response is not None
    assert per_token is not None
    assert per_response.value == pytest.approx(1.5 * math.log(2))
    assert per_token.value == pytest.approx(math.log(2))


def test_kl_from_draws_is_the_true_one_within_its_interval() -> None:
    random = np.random.default_rng(0)
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    draws = random.choice(3, size=(400, 5), p=p)
    found = kl(np.log(p)[draws], np.log(q)[draws])["kl/token"]
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < float((p * np.log(p / q)).sum()) < found.high


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    measures = perplexity([np.full(3, -math.log(50)), np.full(7, -math.log(50))])
    found = measures["perplexity"]
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((50, 50, 50))
    assert perplexity([])["perplexity"] is None
