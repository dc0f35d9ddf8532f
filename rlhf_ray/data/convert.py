"""Any form of data to the plain one: rows without fault, written once each.

    preferences     {"prompt": ..., "chosen": ..., "rejected": ...}, with "margin" where scores said how much better
    demonstrations  {"prompt": ..., "completion": ...}, or {"text": ...}
    prompts         {"prompt": ...}

Prompts and responses are text where the first row's are, else chat messages; the other columns travel along.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.check import Checked
from rlhf_ray.data.entries import Entry, EntryReader, Kind
from rlhf_ray.data.holdout import held_out_prompts
from rlhf_ray.data.turns import Prompt
from rlhf_ray.data.walk import visits
from rlhf_ray.errors import ConfigError, DataError

BATCH = 1024
_RESPONSES: dict[Kind, tuple[str, ...]] = {
    "preferences": ("chosen", "rejected"),
    "demonstrations": ("completion",),
    "prompts": (),
}


@dataclass(frozen=True)
class Split:
    """So much of the rows goes to a file of its own; rows of a prompt stay together."""

    fraction: float
    seed: int
    output: Path


def convert(section: DataSection, checked: Checked, output: Path, split: Split | None = None) -> dict[Path, int]:
    """Write what `check` found no error in, and each duplicate once; the rows written by file.

    Raises ConfigError for an output that is no .jsonl or .parquet file, or that is the input; DataError for rows that
    do not go into one file.
    """
    outputs = [output, *([split.output] if split else [])]
    if Path(section.path).resolve() in {path.resolve() for path in outputs}:
        raise ConfigError(f"convert: '{section.path}' cannot be both input and output.")
    faulty, held_out = (
        _Ascending(np.frombuffer(checked.findings.faulty, np.uint64)),
        _Ascending(_chosen(checked, split)),
    )
    form = _Form(section, checked.kind)
    written = dict.fromkeys(outputs, 0)
    with ExitStack() as open_files:
        writers = [open_files.enter_context(_writer(path)) for path in outputs]
        for visit in visits(section, EntryReader(section)):
            if visit.number in faulty:
                continue
            rows = [form.row(entry, visit.row) for entry in visit.entries]
            aside = visit.number in held_out
            writers[aside].add(rows)
            written[outputs[aside]] += len(rows)
    return written


def _chosen(checked: Checked, split: Split | None) -> np.ndarray:
    """Numbers of the rows to hold out, uint64."""
    if split is None:
        return np.zeros(0, np.uint64)
    numbers = np.frombuffer(checked.hashes.numbers, np.uint64)
    sound = ~np.isin(numbers, np.frombuffer(checked.findings.faulty, np.uint64))
    prompts = _mixed(np.frombuffer(checked.hashes.prompts, np.uint64)[sound], split.seed)
    chosen = held_out_prompts(prompts, split.fraction) if len(prompts) else np.zeros(0, bool)
    if chosen.all():
        raise DataError(f"'{checked.path}': {len(chosen):,} sound rows of one prompt cannot be split.")
    return numbers[sound][chosen]


def _mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """The hashes in an order drawn from `seed` (splitmix64, Steele et al. 2014)."""
    mixed = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class _Ascending:
    """Membership of numbers that are asked for in ascending order."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers, self._at = np.unique(numbers), 0

    def __contains__(self, number: int) -> bool:
        while self._at < len(self._numbers) and self._numbers[self._at] < number:
            self._at += 1
        return self._at < len(self._numbers) and int(self._numbers[self._at]) == number


class _Form:
    """How entries are written: decided by the first one."""

    def __init__(self, section: DataSection, kind: Kind) -> None:
        self._responses = _RESPONSES[kind]
        self._consumed = {value for name, value in section if name.endswith("_column")}
        self._messages: bool | None = None

    def row(self, entry: Entry, source: dict[str, Any]) -> dict[str, Any]:
        if entry.prompt is None:
            own: dict[str, Any] = {"text": entry.responses[0]}
        else:
            if self._messages is None:
                self._messages = not isinstance(entry.prompt, str)
            own = {"prompt": self._prompt(entry.prompt)}
            own |= {name: self._said(text) for name, text in zip(self._responses, entry.responses, strict=True)}
        if entry.margin is not None:
            own["margin"] = entry.margin
        return own | {name: value for name, value in source.items() if name not in self._consumed and name not in own}

    def _prompt(self, prompt: Prompt) -> Prompt:
        if self._messages:
            return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if isinstance(prompt, str):
            return prompt
        if len(prompt) == 1:
            return str(prompt[0]["content"])
        raise DataError(
            "convert: the first row's prompt is text, that of a later one a conversation. Split the file in two, or "
            "turn text into chat messages with preprocess."
        )

    def _said(self, text: str) -> Any:
        return [{"role": "assistant", "content": text}] if self._messages else text


class _Writer(Protocol):
    def add(self, rows: list[dict[str, Any]]) -> None: ...
    def close(self) -> None: ...


class _Jsonl:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """The first batch decides the columns and their types."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, list[dict[str, Any]]()
        self._writer: Any = None

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._rows += rows
        if len(self._rows) >= BATCH:
            self._flush()

    def close(self) -> None:
        if self._rows or self._writer is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow.parquet

        schema = self._writer.schema if self._writer else None
        late = {name for row in self._rows for name in row} - {*(schema.names if schema else ())} if schema else set()
        try:
            if late:
                raise pa.ArrowInvalid(f"the first rows lack {', '.join(sorted(late))}")
            table = pa.Table.from_pylist(self._rows, schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            raise DataError(f"convert: the rows do not go into one Parquet file ({exc}). Write a .jsonl file.") from exc
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)
        self._rows.clear()


_WRITERS: dict[str, type[_Jsonl] | type[_Parquet]] = {".jsonl": _Jsonl, ".parquet": _Parquet}


@contextmanager
def _writer(path: Path) -> Iterator[_Writer]:
    """Writes aside and renames when all went well."""
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(f"convert: '{path}' must end in {' or '.join(_WRITERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer = _WRITERS[path.suffix.lower()](aside)
    try:
        yield writer
        writer.close()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
