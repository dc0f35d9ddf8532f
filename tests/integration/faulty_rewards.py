"""Rewards that do what they are told: by the response, or by `faults` for the row's `number`. 0.5 where all is well."""

import asyncio
import math
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

WELL = 0.5
TIMEOUT_S = 1.0
LATE_S = 1.5 * TIMEOUT_S

Faults = Mapping[str, Sequence[int]]  # fault -> the rows that meet it


def plain(prompt: str, response: str, number: int = 0, faults: Faults | None = None) -> Any:
    return _act(_fault(response, number, faults))


async def waiting(prompt: str, response: str, number: int = 0, faults: Faults | None = None) -> Any:
    """Lets its neighbours run while it waits, and hangs without blocking them."""
    fault = _fault(response, number, faults)
    while fault == "loop":
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    return _act(fault)


def batch(
    prompts: Sequence[str], responses: Sequence[str], number: Sequence[int] | None = None, faults: Faults | None = None
) -> list[Any]:
    numbers = number or [0] * len(prompts)
    return [_act(_fault(r, n, faults)) for r, n in zip(responses, numbers, strict=True)]


class Judge:
    """A method, and two numbers under keys."""

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, prompt: str, response: str) -> Any:
        return self.value if (answer := _act(response)) == WELL else answer

    def keys(self, prompt: str, response: str, number: int = 0, faults: Faults | None = None) -> dict[str, Any]:
        return {"tone": self.value, "facts": _act(_fault(response, number, faults))}


def _fault(response: str, number: int, faults: Faults | None) -> str:
    if faults is None:
        return response
    return next((fault for fault, numbers in faults.items() if number in numbers), "well")


def _act(fault: str) -> Any:
    if fault == "raises":
        raise ValueError("boom")
    if fault == "loop":
        while True:
            pass
    if fault == "gil":  # one call into C that never releases the interpreter's lock
        re.match(r"(a+)+$", "a" * 64 + "b")
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "late":
        time.sleep(LATE_S)
    return {"nan": math.nan, "none": None, "wrong_type": "high"}.get(fault, WELL)
