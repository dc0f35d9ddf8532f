"""Rewards that can be checked, and the small rules: right, wrong, nothing to check, and mistakes in the dataset."""

import json
import re
from typing import Any

import pytest

from rlhf_ray.rewards.rules import finished, length_penalty, repetition_penalty, without_words
from rlhf_ray.rewards.verify import answer_of, exact_match, json_schema_valid, number_of, numeric_match, regex_match

pytestmark = pytest.mark.unit

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "truth", "options", "reward"),
    [
        (" Paris\n", "Paris", {}, 1.0),
        ("the  capital\nis Paris", "the capital is Paris", {}, 1.0),
        ("paris", "Paris", {}, 0.0),
        ("PARIS", "Paris", {"ignore_case": True}, 1.0),
        ("It is in France.\n\nParis\n\n", "Paris", {"answer": "last_line"}, 1.0),
        (r"so \boxed{x^{2}} and \boxed{\frac{1}{2}}", r"\frac{1}{2}", {"answer": "boxed"}, 1.0),
        ("<answer>London</answer> no, <answer>Paris</answer>", "Paris", {"answer": "tag"}, 1.0),
        ("Paris", "Paris", {"answer": "tag"}, 0.0),
        ("", "Paris", {"answer": "last_line"}, 0.0),
        ("Paris", None, {}, None),
    ],
)
def test_exact_match(response: str, truth: str | None, options: dict[str, Any], reward: float | None) -> None:
    assert exact_match("", response, truth, **options) == reward


def test_an_unknown_answer_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of whole, last_line"):
        answer_of("x", "first_line")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("First 3, then 4.", 4.0),
        ("That makes 1,234,567.5 dollars", 1234567.5),
        ("1,2", 2.0),
        ("x = -3", -3.0),
        ("from 5-3", 3.0),
        ("a loss of \N{MINUS SIGN}7", -7.0),
        ("about .5", 0.5),
        ("wait...42", 42.0),
        ("6.02e23 molecules", 6.02e23),
        ("one half is 1/2.", 0.5),
        ("on 3/4/2020", 2020.0),
        ("#### 72", 72.0),
        ("$18", 18.0),
        (r"\boxed{-\frac{3}{4}} not 9", -0.75),
        (r"\boxed{\$1{,}000}", 1000.0),
        (r"\boxed{12} and an open \boxed{13", 12.0),
        ("version2", None),
        ("none here", None),
        ("", None),
    ],
)
def test_number_of(text: str, number: float | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("response", "truth", "tolerance", "reward"),
    [
        ("The answer is 72", "48 + 24 = <<48+24=72>>72\n#### 72", 1e-6, 1.0),
        ("The answer is 71", "#### 72", 1e-6, 0.0),
        ("3.14", 3.14159, 0.01, 1.0),
        ("3.14", 3.14159, 1e-4, 0.0),
        ("1010", 1000, 0.01, 1.0),
        ("0.004", 0, 0.005, 1.0),
        ("no idea", 5, 1e-6, 0.0),
        ("9" * 400, 5, 1e-6, 0.0),
        ("5", None, 1e-6, None),
    ],
)
def test_numeric_match(response: str, truth: str | float | None, tolerance: float, reward: float | None) -> None:
    assert numeric_match("", response, truth, tolerance) == reward


def test_a_ground_truth_without_a_number_is_a_mistake_in_the_dataset() -> None:
    with pytest.raises(ValueError, match="'unknown' holds no number"):
        numeric_match("", "5", "unknown")


def test_regex_match() -> None:
    assert regex_match("", "call 555-1234 now", r"\d{3}-\d{4}") == 1.0
    assert regex_match("", "call 555-1234 now", r"\d{3}-\d{4}", whole=True) == 0.0
    assert regex_match("", "<think>a\nb</think>c", "<think>.*</think>.+", whole=True) == 1.0
    assert regex_match("", "x", None) is None
    with pytest.raises(re.error):
        regex_match("", "x", "(")


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('Here you are:\n```json\n{"name": "Ada"}\n```\nAnything else?', 1.0),
        ('```\n{"name": "Ada"}', 1.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"age": 36}', 0.0),
        ('{"name": "Ada",}', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_schema_valid(response: str, reward: float) -> None:
    assert json_schema_valid("", response, SCHEMA) == reward
    assert json_schema_valid("", response, json.dumps(SCHEMA)) == reward


def test_json_schemas_that_are_absent_or_no_schema() -> None:
    from jsonschema import SchemaError

    assert json_schema_valid("", "{}", None) is None
    with pytest.raises(SchemaError):
        json_schema_valid("", "{}", {"type": "objekt"})


def test_length_penalty_falls_evenly_between_its_limits() -> None:
    penalties = [length_penalty("", "", range(tokens), free=10, maximum=20) for tokens in (0, 10, 15, 20, 90)]
    assert penalties == [0.0, 0.0, -0.5, -1.0, -1.0]
    with pytest.raises(ValueError, match=r"free \(20\)"):
        length_penalty("", "", [1], free=20, maximum=20)


def test_repetition_penalty_is_the_share_of_runs_said_before() -> None:
    assert repetition_penalty("", "all of these words differ from each other") == 0.0
    assert repetition_penalty("", "one two three", words=4) == 0.0
    assert repetition_penalty("", "a b A b, a b", words=2) == pytest.approx(-3 / 5)  # ab ba ab ba ab
    assert repetition_penalty("", "la " * 200) < -0.98


def test_finished_and_without_words() -> None:
    assert [finished("", "", reason) for reason in ("stop", "length")] == [1.0, 0.0]
    assert without_words("", "As an AI, I refuse", ["ai"]) == 0.0
    assert without_words("", "He said nothing", ["ai", "as an"]) == 1.0
    with pytest.raises(ValueError, match="must be a list"):
        without_words("", "x", "ai")
