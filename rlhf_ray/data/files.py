"""Data files to Arrow tables, whole or in batches. Columns are chosen and checked elsewhere.

Arrow's own readers do the work. Only when they refuse a JSONL file is it read line by line, to name the line at fault.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray.data.rows import table_from_rows
from rlhf_ray.errors import DataError

Batches = Iterator[pa.Table]


def is_data_file(path: Path) -> bool:
    """Whether the name ends as a data file's does."""
    return path.suffix.lower() in _READERS


def read_file(path: Path) -> pa.Table:
    """All rows of a JSONL, JSON, CSV, Parquet or Arrow file. Raises DataError for one that cannot be read."""
    _check(path)
    with _explained(path):
        return _READERS[path.suffix.lower()](path)


def read_in_batches(path: Path, rows: int) -> Batches:
    """The rows in tables of at most `rows`, reading little further than asked for (a JSON array is read whole).

    Lines of JSONL keep their exact types; a batch may lack columns or know less of their types than a later one.
    """
    _check(path)
    reader = _BATCH_READERS.get(path.suffix.lower())
    with _explained(path):
        for table in reader(path, rows) if reader else [read_file(path)]:
            yield from (table.slice(start, rows) for start in range(0, table.num_rows, rows))


def endings() -> str:
    """The endings of data files, for messages."""
    return ", ".join(_READERS)


def _check(path: Path) -> None:
    if not is_data_file(path):
        raise DataError(f"Cannot read '{path}': its name must end in one of {endings()}.")
    if path.stat().st_size == 0:
        raise DataError(f"The data file '{path}' is empty.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as exc:
        raise DataError(f"Cannot read '{path}': {exc}") from exc


# --- JSON lines and JSON ---


def _read_jsonl(path: Path) -> pa.Table:
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(path)
        table.validate(full=True)  # the reader lets bytes through that are not UTF-8
    except pa.ArrowInvalid:
        return _from_lines(path, list(_sound_lines(path)))
    # Arrow guesses timestamps from text; text is what the file says.
    guessed = any(pa.types.is_timestamp(field.type) for field in table.schema)
    return _from_lines(path, list(_sound_lines(path))) if guessed else table


def _batch_jsonl(path: Path, rows: int) -> Batches:
    batch: list[tuple[int, Any]] = []
    for line in _sound_lines(path):
        batch.append(line)
        if len(batch) == rows:
            yield _from_lines(path, batch)
            batch = []
    if batch:
        yield _from_lines(path, batch)


def _from_lines(path: Path, lines: list[tuple[int, Any]]) -> pa.Table:
    return table_from_rows([row for _, row in lines], lambda index: f"'{path}', line {lines[index][0]}")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of the lines that are not blank: slower than Arrow's reader, but without guesses.

    A line that is no JSON has the DataError that says so in place of its value.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield number, json.loads(line.rstrip("\r\n"))
            except UnicodeDecodeError as exc:
                yield number, DataError(f"'{path}', line {number}: not UTF-8 text ({exc.reason}).")
            except (json.JSONDecodeError, RecursionError) as exc:
                what = f"{exc.msg} at character {exc.pos + 1}" if isinstance(exc, json.JSONDecodeError) else "too deep"
                yield number, DataError(f"'{path}', line {number}: malformed JSON ({what}).")


def _sound_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The lines, or the DataError of the first one at fault."""
    for number, value in json_lines(path):
        if isinstance(value, DataError):
            raise value
        yield number, value


def _read_json(path: Path) -> pa.Table:
    """A JSON file: one array of objects, or JSONL under another name."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as exc:
        raise DataError(f"'{path}', line {exc.lineno}: malformed JSON ({exc.msg} at column {exc.colno}).") from exc
    return table_from_rows(rows, lambda index: f"'{path}', entry {index + 1}")


# --- CSV, Parquet, Arrow ---


def _read_csv(path: Path) -> pa.Table:
    import pyarrow.csv

    parse_options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        return pyarrow.csv.read_csv(path, parse_options=parse_options)
    except pa.ArrowInvalid:  # one thread is slower, but its error names the row
        return pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(use_threads=False), parse_options)


def _batch_csv(path: Path, rows: int) -> Batches:
    """By blocks of bytes; column types are those of the first block."""
    import pyarrow.csv

    with pyarrow.csv.open_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)) as reader:
        yield from (pa.Table.from_batches([batch]) for batch in reader)


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _batch_parquet(path: Path, rows: int) -> Batches:
    import pyarrow.parquet

    # pre_buffer, the default, would keep every row group that was read until the file is closed.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches(rows))


def _read_arrow(path: Path) -> pa.Table:
    """An Arrow file, or the stream format that `datasets` writes."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _batch_arrow(path: Path, rows: int) -> Batches:
    """By the file's own record batches."""
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from (pa.Table.from_batches([batch]) for batch in pa.ipc.open_stream(source))
        else:
            for index in range(file.num_record_batches):
                yield pa.Table.from_batches([file.get_batch(index)])


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
_BATCH_READERS: dict[str, Callable[[Path, int], Batches]] = {
    ".jsonl": _batch_jsonl,
    ".csv": _batch_csv,
    ".parquet": _batch_parquet,
    ".arrow": _batch_arrow,
}
