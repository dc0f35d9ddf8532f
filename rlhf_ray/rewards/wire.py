"""How the sandbox and its child process talk: pickled batches of calls one way, small binary results the other.

Calls go down as a length and a pickle. Results come up one by one, as a fixed header (kind, row, value, seconds,
length) and, where there is more to say, a JSON text: never a pickle, since the child runs code that the parent need not
trust.
"""

import json
import os
import pickle
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, BinaryIO, NamedTuple

from rlhf_ray.rewards.outcome import CallFailure, Outcome

LENGTH = struct.Struct("<Q")
_RESULT = struct.Struct("<BIddI")
_MAX_TEXT = 20_000


class Kind(IntEnum):
    """What a result says. The first two concern the start of the child, the rest one row each."""

    READY = 0
    REFUSED = 1
    VALUE = 2
    DOES_NOT_APPLY = 3
    FAILED = 4
    REPEAT = 5  # the row failed together with others: call it again, alone


class Calls(NamedTuple):
    """Rows to call the function on. `columns` holds prompts, responses and what else it takes, [rows] each."""

    rows: Sequence[int]
    columns: Sequence[Sequence[Any]]
    alone: bool = False  # one row with nothing beside it: whatever happens is its own doing


class Result(NamedTuple):
    kind: Kind
    row: int
    outcome: Outcome  # of VALUE, DOES_NOT_APPLY and FAILED
    details: Mapping[str, Any]  # READY: columns, is_async; REFUSED: message


def pack_payload(payload: object) -> bytes:
    data = pickle.dumps(payload, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


def read_payload(stream: BinaryIO) -> Any:
    """The next payload; None once the parent has closed its end."""
    header = stream.read(LENGTH.size)
    return pickle.loads(stream.read(LENGTH.unpack(header)[0])) if len(header) == LENGTH.size else None


def pack_outcome(row: int, outcome: Outcome | None) -> bytes:
    """The result of one row; None: it has to be repeated alone."""
    if outcome is None:
        return _pack(Kind.REPEAT, row)
    if (failure := outcome.failure) is not None:
        texts = {"message": _shortened(failure.message), "traceback": _shortened(failure.traceback)}
        return _pack(Kind.FAILED, row, seconds=outcome.seconds, details={"kind": failure.kind, **texts})
    details = {"parts": dict(outcome.parts)} if outcome.parts else None
    if outcome.value is None:
        return _pack(Kind.DOES_NOT_APPLY, row, seconds=outcome.seconds, details=details)
    return _pack(Kind.VALUE, row, outcome.value, outcome.seconds, details)


def pack_start(kind: Kind, **details: object) -> bytes:
    """The child's first result: READY or REFUSED."""
    return _pack(kind, 0, details=details)


def take_results(buffer: bytearray) -> list[Result]:
    """Remove every complete result from the front of `buffer`."""
    results: list[Result] = []
    position = 0
    while len(buffer) - position >= _RESULT.size:
        kind, row, value, seconds, length = _RESULT.unpack_from(buffer, position)
        body = position + _RESULT.size
        if len(buffer) - body < length:
            break
        details = json.loads(buffer[body : body + length]) if length else {}
        results.append(Result(Kind(kind), row, _outcome(Kind(kind), value, seconds, details), details))
        position = body + length
    del buffer[:position]
    return results


def write_all(fd: int, data: bytes) -> None:
    """Blocking write of all of `data`, also when a signal handler of the user's code cuts a write short."""
    while data:
        data = data[os.write(fd, data) :]


def _outcome(kind: Kind, value: float, seconds: float, details: Mapping[str, Any]) -> Outcome:
    if kind is Kind.FAILED:
        failure = CallFailure(details["kind"], details["message"], details["traceback"])
        return Outcome(failure=failure, seconds=seconds)
    parts = details.get("parts", {})
    return Outcome(value=value if kind is Kind.VALUE else None, seconds=seconds, parts=parts)


def _pack(
    kind: Kind, row: int, value: float = 0.0, seconds: float = 0.0, details: Mapping[str, object] | None = None
) -> bytes:
    data = json.dumps(details).encode() if details else b""
    return _RESULT.pack(kind, row, value, seconds, len(data)) + data


def _shortened(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
