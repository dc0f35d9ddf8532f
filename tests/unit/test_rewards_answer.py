"""Answers of reward functions: numbers, None, dicts of them; everything else is a failure that says what came."""

import math

import numpy as np
import pytest

from rlhf_ray.rewards.answer import outcome_of, outcome_of_exception

pytestmark = pytest.mark.unit


def test_a_dict_is_the_weighted_sum_of_its_keys() -> None:
    outcome = outcome_of({"clear": 0.5, "short": np.float32(0.25), "cited": None}, {"clear": 2.0, "cited": 5.0})
    assert outcome.failure is None
    assert outcome.value == 2.0 * 0.5 + 0.25
    assert outcome.parts == {"clear": 0.5, "short": 0.25, "cited": None}


@pytest.mark.parametrize("answer", [{}, {"a": None}])
def test_a_dict_without_a_number_does_not_apply(answer: dict[str, None]) -> None:
    outcome = outcome_of(answer, {})
    assert (outcome.value, outcome.failure, outcome.parts) == (None, None, answer)


@pytest.mark.parametrize(
    ("answer", "keys", "kind", "words"),
    [
        ({"a": 1.0, "b": math.nan}, {}, "not_finite", "returned nan (float) under `b`"),
        ({"a": 1.0, "b": "x"}, {}, "wrong_type", "returned 'x' (str) under `b`, not a number"),
        ({"a": {"b": 1.0}}, {}, "wrong_type", "(dict) under `a`"),
        ({1: 1.0}, {}, "wrong_type", "the key 1 (int)"),
        ({"brevity": 1.0}, {"brevty": 2.0}, "wrong_type", "returned no `brevty`"),
        ({"a": 1e308, "b": 1e308}, {}, "not_finite", "weighted sum is inf"),
        (0.5, {"a": 1.0}, "wrong_type", "not a dict, although the component's `keys` weighs `a`"),
        ([1.0], {}, "wrong_type", "returned [1.0] (list)"),
    ],
)
def test_one_bad_key_fails_the_sample(answer: object, keys: dict[str, float], kind: str, words: str) -> None:
    outcome = outcome_of(answer, keys)
    assert outcome.value is None
    assert outcome.parts == {}
    assert outcome.failure is not None
    assert outcome.failure.kind == kind
    assert words in outcome.failure.message


def test_keys_do_not_forbid_none() -> None:
    assert outcome_of(None, {"a": 1.0}).failure is None


def test_an_exception_keeps_its_causes_and_loses_the_caller_s_frame() -> None:
    def inner() -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("bad row") from error

    try:
        inner()
    except ValueError as error:
        failure = outcome_of_exception(error, 0.5).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("raised", "raised ValueError: bad row")
    assert "KeyError: 'missing'" in failure.traceback
    assert "in inner" in failure.traceback
    assert "test_an_exception" not in failure.traceback
