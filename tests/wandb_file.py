"""Reads what W&B keeps of an offline run: a LevelDB log of protocol buffers behind a header of seven bytes.

Format: github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(path: Path) -> list[dict[str, Any]]:
    """One dict per logged step."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def config(path: Path) -> dict[str, Any]:
    """The configuration that the run was given, by top-level key."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {}
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            found |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return found


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, record = FILE_HEADER, b""
    while place + CHUNK_HEADER <= len(data):
        if BLOCK - place % BLOCK < CHUNK_HEADER:  # no chunk starts in so little space
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        place += CHUNK_HEADER
        record = data[place : place + size] if kind in (FULL, FIRST) else record + data[place : place + size]
        place += size
        if kind in (FULL, LAST):
            yield record
