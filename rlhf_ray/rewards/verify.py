r"""Rewards that can be checked: exact, numeric, by regular expression, by JSON schema. 1.0 for right, 0.0 for wrong.

Used by import path; `ground_truth`, `pattern` and `schema` come from the dataset column of that name or from the
component's `arguments`:

    rewards:
      correct:
        type: function
        function: rlhf_ray.rewards.verify:numeric_match
        arguments: {tolerance: 0.001}

A sample whose `ground_truth` (`pattern`, `schema`) is null has nothing to be checked against: the reward does not
apply. One that is no number where a number is needed is a mistake in the dataset, and fails the call.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

AnswerForm = Literal["whole", "last_line", "boxed", "tag"]

_NUMBER = re.compile(r"(?<!\w)(?<!\d\.)[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE][-+]?\d+)?")
_FRACTION = re.compile(rf"({_NUMBER.pattern})\s*/\s*(\d+)(?!\d|\.\d)")
_LATEX_FRACTION = re.compile(r"([-+]?)\s*\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def exact_match(
    prompt: str, response: str, ground_truth: str | None, answer: AnswerForm = "whole", ignore_case: bool = False
) -> float | None:
    """The answer is the ground truth, up to white space.

    `answer` says what of the response is compared: all of it (`whole`), its `last_line`, the last LaTeX `boxed`, or the
    last `<answer>...</answer>` (`tag`).
    """
    if ground_truth is None:
        return None
    given, truth = _squeezed(answer_of(response, answer) or ""), _squeezed(str(ground_truth))
    return float(given.casefold() == truth.casefold() if ignore_case else given == truth)


def numeric_match(
    prompt: str, response: str, ground_truth: str | float | None, tolerance: float = 1e-6
) -> float | None:
    r"""The answer is the ground truth as a number.

    The number is the one in the last `\boxed{}`, or else the last of the text; the same goes for a ground truth that is
    text ("... #### 72" is 72). Thousands separators, fractions and exponents are read; units and signs such as % are
    not. `tolerance` is relative to the ground truth, absolute where that is below 1.
    """
    if ground_truth is None:
        return None
    truth = number_of(ground_truth) if isinstance(ground_truth, str) else float(ground_truth)
    if truth is None:
        raise ValueError(f"ground_truth {ground_truth!r} holds no number")
    given = number_of(response)
    return float(given is not None and abs(given - truth) <= tolerance * max(1.0, abs(truth)))


def regex_match(prompt: str, response: str, pattern: str | None, whole: bool = False) -> float | None:
    """The pattern (Python's `re`, where `.` matches line ends too) is found in the response; `whole`: is all of it."""
    if pattern is None:
        return None
    match = re.fullmatch if whole else re.search
    return float(match(pattern, response, re.DOTALL) is not None)


def json_schema_valid(prompt: str, response: str, schema: str | Mapping[str, Any] | None) -> float | None:
    """The response is JSON, bare or in a code block, that is valid under `schema` (a mapping, or JSON text)."""
    if schema is None:
        return None
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
    blocks = _FENCE.findall(response)
    try:
        document = json.loads(blocks[-1] if blocks else response, parse_constant=_refuse_constant)
        return float(validator.is_valid(document))
    except (ValueError, RecursionError):
        return 0.0


def answer_of(response: str, form: AnswerForm) -> str | None:
    """The part of the response that is its answer; None where it has none. Raises ValueError for an unknown form."""
    if form == "whole":
        return response
    if form == "last_line":
        return next((line for line in reversed(response.splitlines()) if line.strip()), None)
    if form == "boxed":
        return _last_boxed(response)
    if form == "tag":
        found = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
        return found[-1] if found else None
    raise ValueError(f"answer: {form!r} is none of whole, last_line, boxed, tag")


def number_of(text: str) -> float | None:
    r"""The number in the last `\boxed{}`, or else the last number of the text; None where there is none."""
    boxed = _last_boxed(text)
    plain = _LATEX_FRACTION.sub(r" \1\2/\3 ", (text if boxed is None else boxed).replace("\N{MINUS SIGN}", "-"))
    plain = plain.replace("{,}", ",").replace("\\", " ")
    numbers = list(_NUMBER.finditer(plain))
    if not numbers:
        return None
    fractions = [match for match in _FRACTION.finditer(plain) if match.end() >= numbers[-1].end()]
    if fractions and float(fractions[-1][2]):
        return _read(fractions[-1][1]) / float(fractions[-1][2])
    return _read(numbers[-1][0])


def _read(number: str) -> float:
    return float(number.replace(",", ""))


def _last_boxed(text: str) -> str | None:
    r"""What stands in the last closed `\boxed{...}`, braces within it included."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for

    loaded = json.loads(schema)
    kind = validator_for(loaded)
    kind.check_schema(loaded)
    return kind(loaded)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
