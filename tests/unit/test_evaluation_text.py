"""Lengths and diversity of responses on examples that can be counted by hand."""

import math

import numpy as np
import pytest

from rlhf_ray.evaluation.text import Measures, diversity, entropy, lengths

pytestmark = pytest.mark.unit


def value(measures: Measures, name: str) -> float:
    estimate = measures[name]
    assert estimate is not None
    return estimate.value


def test_distinct_counts_different_ngrams_over_all() -> None:
    measures = diversity(["a b a b", "A b c"])  # case does not count
    assert value(measures, "diversity/distinct_1") == pytest.approx(3 / 7)
    assert value(measures, "diversity/distinct_2") == pytest.approx(3 / 5)  # ab ba ab | ab bc
    assert value(measures, "diversity/distinct_3") == pytest.approx(3 / 3)


def test_entropy_sees_how_often_a_bigram_comes() -> None:
    assert value(diversity(["a b c d e"]), "diversity/entropy_2") == pytest.approx(math.log(4))
    even, uneven = diversity(["a b a", "a b a"]), diversity(["a b a b a b a b a c"])
    assert value(even, "diversity/entropy_2") == pytest.approx(math.log(2))
    assert value(uneven, "diversity/entropy_2") < math.log(3)


@pytest.mark.parametrize("scale", [1, 7])
def test_entropy_does_not_depend_on_the_number_of_observations(scale: int) -> None:
    assert entropy([scale, 3 * scale]) == pytest.approx(entropy([1, 3]))


def test_repeated_responses_are_equal_to_another() -> None:
    measures = diversity(["yes", "no", "Yes", "maybe so"])
    assert value(measures, "diversity/repeated") == 0.5


def test_responses_do_not_share_ngrams_across_their_ends() -> None:
    assert diversity(["a", "b"])["diversity/distinct_2"] is None
    assert diversity(["", ""])["diversity/distinct_1"] is None


def test_the_order_of_responses_does_not_matter() -> None:
    texts = ["a b c", "c b a", "a a a", "b"]
    assert diversity(texts) == diversity(texts[::-1])


def test_lengths_are_in_tokens_and_truncation_is_a_share() -> None:
    tokens, truncated = np.array([1, 2, 3, 10]), np.array([False, False, False, True])
    measures = lengths(["", "a", "b", " "], tokens, truncated)
    assert value(measures, "length/mean") == 4.0
    assert value(measures, "length/median") == 2.5
    assert 3 < value(measures, "length/p95") < 10
    assert value(measures, "length/truncated") == 0.25
    assert value(measures, "length/empty") == 0.5
    assert lengths([], np.array([]), np.array([], bool)) == {}
