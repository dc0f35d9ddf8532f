"""From what a reward function returned or raised to an `Outcome`. No failure becomes a number here."""

import math
import traceback
from collections.abc import Callable, Mapping

from rlhf_ray.rewards.outcome import CallFailure, Outcome


def outcome_of(answer: object, keys: Mapping[str, float], seconds: float = 0.0) -> Outcome:
    """Read the answer to one sample: a number (numpy's and torch's scalars included), None, or a dict of them.

    A dict's value is the sum of its numbers, each times its weight in `keys` (1 where it has none); keys that are None
    do not apply. Everything else is a failure that says what came.
    """
    if isinstance(answer, Mapping):
        return _outcome_of_parts(answer, keys, seconds)
    if keys and answer is not None:
        message = f"returned {described(answer)}, not a dict, although the component's `keys` weighs {_names(keys)}"
        return Outcome(failure=CallFailure("wrong_type", message), seconds=seconds)
    number = _read_number(answer, "")
    if isinstance(number, CallFailure):
        return Outcome(failure=number, seconds=seconds)
    return Outcome(value=number, seconds=seconds)


def outcome_of_exception(error: BaseException, seconds: float = 0.0) -> Outcome:
    """The failure of a call that raised; its traceback starts below the frame that made the call."""
    caller = error.__traceback__
    below = caller.tb_next if caller else None
    lines = traceback.format_exception(type(error), error.with_traceback(below), below)
    name, text = type(error).__name__, _shown(str, error, 400)
    message = f"raised {name}: {text}" if text else f"raised {name}"
    return Outcome(failure=CallFailure("raised", message, "".join(lines).rstrip()), seconds=seconds)


def described(answer: object) -> str:
    """An answer for an error message: its text, shortened, and its type."""
    return f"{_shown(repr, answer, 120)} ({type(answer).__name__})"


def _outcome_of_parts(answer: Mapping[object, object], keys: Mapping[str, float], seconds: float) -> Outcome:
    parts: dict[str, float | None] = {}
    for key, item in answer.items():
        if not isinstance(key, str):
            message = f"returned a dict with the key {described(key)}; keys must be text"
            return Outcome(failure=CallFailure("wrong_type", message), seconds=seconds)
        number = _read_number(item, f" under `{key}`")
        if isinstance(number, CallFailure):
            return Outcome(failure=number, seconds=seconds)
        parts[key] = number
    if absent := [key for key in keys if key not in parts]:
        message = (
            f"returned no {_names(absent)}, which the component's `keys` weighs; it returned {_names(parts)} "
            "(a key that does not apply is returned as None)"
        )
        return Outcome(failure=CallFailure("wrong_type", message), seconds=seconds)
    present = {key: number for key, number in parts.items() if number is not None}
    if not present:
        return Outcome(seconds=seconds, parts=parts)
    total = sum(keys.get(key, 1.0) * number for key, number in present.items())
    if not math.isfinite(total):
        message = f"returned {described(answer)}, whose weighted sum is {total}; a reward must be finite"
        return Outcome(failure=CallFailure("not_finite", message), seconds=seconds)
    return Outcome(value=total, seconds=seconds, parts=parts)


def _read_number(answer: object, where: str) -> float | CallFailure | None:
    if answer is None:
        return None
    value = answer
    if hasattr(answer, "item"):
        try:
            value = answer.item()
        except Exception:
            value = answer  # more than one element: reported as the wrong type below
    if not isinstance(value, (int, float)):
        message = f"returned {described(answer)}{where}, not a number; return a float, or None where it does not apply"
        return CallFailure("wrong_type", message)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        message = f"returned {described(answer)}{where}; a reward must be finite (return None where it does not apply)"
        return CallFailure("not_finite", message)
    return number


def _names(names: Mapping[str, object] | list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no keys"


def _shown(render: Callable[[object], str], thing: object, limit: int) -> str:
    try:
        text = render(thing)
    except Exception:
        return "<unprintable>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
