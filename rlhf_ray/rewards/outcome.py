"""What one scored sample came to, whatever scored it: a number, a failure, or "does not apply"."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FailureKind = Literal["raised", "not_finite", "wrong_type", "timeout", "died"]


@dataclass(frozen=True, slots=True)
class CallFailure:
    """Why a call gave no reward. `message` reads on after the component's name; `traceback` may be empty."""

    kind: FailureKind
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample: a finite value, or a failure, or neither (does not apply)."""

    value: float | None = None
    failure: CallFailure | None = None
    seconds: float = 0.0  # the sample's share of the call
    parts: Mapping[str, float | None] = field(default_factory=dict)  # values of a dict's keys, before their weights
