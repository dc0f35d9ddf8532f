"""How the sandbox and its child process talk: pickled batches of calls one way, small binary results the other.

Calls go down as a length and a pickle. Results come up one by one, as a fixed header (kind, value, seconds the call
took, length) and, for failures, a JSON text: never a pickle, since the child runs code that the parent need not trust.
"""

import json
import os
import pickle
import struct
from enum import IntEnum
from typing import Any, BinaryIO, NamedTuple

_LENGTH = struct.Struct("<Q")
_RESULT = struct.Struct("<BddI")
_MAX_TEXT = 20_000


class Kind(IntEnum):
    """What a result says. The first two concern the start of the child, the rest one call each."""

    READY = 0
    REFUSED = 1
    VALUE = 2
    DOES_NOT_APPLY = 3
    RAISED = 4
    NOT_FINITE = 5
    WRONG_TYPE = 6


class Result(NamedTuple):
    kind: Kind
    value: float  # of VALUE
    seconds: float  # the call took, by the child's clock
    details: dict[str, Any]  # READY: columns; failures: message, traceback


def pack_call(payload: object) -> bytes:
    data = pickle.dumps(payload, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def read_call(stream: BinaryIO) -> Any:
    """The next payload; None once the parent has closed its end."""
    header = stream.read(_LENGTH.size)
    return pickle.loads(stream.read(_LENGTH.unpack(header)[0])) if len(header) == _LENGTH.size else None


def pack_result(kind: Kind, value: float = 0.0, seconds: float = 0.0, **details: object) -> bytes:
    if not details:
        return _RESULT.pack(kind, value, seconds, 0)
    text = json.dumps({key: _shortened(item) if isinstance(item, str) else item for key, item in details.items()})
    data = text.encode()
    return _RESULT.pack(kind, value, seconds, len(data)) + data


def take_results(buffer: bytearray) -> list[Result]:
    """Remove every complete result from the front of `buffer`."""
    results: list[Result] = []
    position = 0
    while len(buffer) - position >= _RESULT.size:
        kind, value, seconds, length = _RESULT.unpack_from(buffer, position)
        body = position + _RESULT.size
        if len(buffer) - body < length:
            break
        details = json.loads(buffer[body : body + length]) if length else {}
        results.append(Result(Kind(kind), value, seconds, details))
        position = body + length
    del buffer[:position]
    return results


def write_all(fd: int, data: bytes) -> None:
    """Blocking write of all of `data`, also when a signal handler of the user's code cuts a write short."""
    while data:
        data = data[os.write(fd, data) :]


def _shortened(text: str) -> str:
    half = _MAX_TEXT // 2
    return (
        text
        if len(text) <= _MAX_TEXT
        else f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
    )
