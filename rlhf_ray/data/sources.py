"""Files, folders and hub datasets to Arrow tables, as they are: columns are chosen and checked elsewhere.

Arrow's own readers do the work. Only when they refuse a JSONL file is it read line by line, to name the line at fault.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray.errors import DataError
from rlhf_ray.hub import ask_hub, explain_hub_error, looks_like_path, unreachable


def load_table(path: str, split: str = "train", subset: str | None = None) -> pa.Table:
    """The rows of a JSONL, JSON, CSV, Parquet or Arrow file, a folder of them, or a hub dataset's split.

    A path that exists always wins over a hub name. Raises DataError for a missing, malformed or empty source,
    ConfigError for a hub dataset that is absent, gated or out of reach.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        table = _read_folder(local, split)
    elif local.is_file():
        table = _read_file(local)
    elif local.suffix.lower() in _READERS or looks_like_path(path):
        raise DataError(f"The data file '{path}' does not exist (looked in {Path.cwd()}).")
    else:
        table = _read_hub_dataset(path, split, subset)
    if table.num_rows == 0:
        raise DataError(f"The dataset '{path}' has no rows.")
    return table


def _read_file(path: Path) -> pa.Table:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"Cannot read '{path}': its name must end in one of {', '.join(_READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"The data file '{path}' is empty.")
    try:
        return reader(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as exc:
        raise DataError(f"Cannot read '{path}': {exc}") from exc


def _read_folder(folder: Path, split: str) -> pa.Table:
    """A folder saved by `datasets`, or all data files below it; those named after the split alone if there are any."""
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        import datasets

        saved = datasets.load_from_disk(str(folder))
        return _arrow(_pick_split(saved, split, str(folder)) if isinstance(saved, datasets.DatasetDict) else saved)
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in _READERS]
    if not files:
        raise DataError(f"The folder '{folder}' holds no data file (one of {', '.join(_READERS)}).")
    of_split = [file for file in files if file.stem == split or file.stem.startswith((f"{split}-", f"{split}_"))]
    tables = [_read_file(file) for file in of_split or files]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise DataError(f"The files in '{folder}' do not have the same columns: {exc}") from exc


def _read_hub_dataset(name: str, split: str, subset: str | None) -> pa.Table:
    import datasets

    if ask_hub(name, "README.md", repo_type="dataset") == "out of reach":
        cache = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()
        if not cache.is_dir():
            raise unreachable(name, "dataset")
    try:
        return _arrow(datasets.load_dataset(name, subset, split=split))
    except (OSError, ValueError, RuntimeError) as exc:
        raise explain_hub_error(name, exc, "dataset") from exc


def _pick_split(splits: Any, split: str, source: str) -> Any:
    if split not in splits:
        raise DataError(f"'{source}' has no split '{split}'; it has {', '.join(splits)}. Set data.split.")
    return splits[split]


def _arrow(dataset: Any) -> pa.Table:
    """The table of a `datasets.Dataset`, with its selection and order applied and without its metadata."""
    return dataset.with_format("arrow")[:].replace_schema_metadata(None)


def _read_jsonl(path: Path) -> pa.Table:
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(path)
        table.validate(full=True)  # the reader lets bytes through that are not UTF-8
    except pa.ArrowInvalid:
        return _read_lines(path)
    # Arrow guesses timestamps from text; text is what the file says.
    guessed = any(pa.types.is_timestamp(field.type) for field in table.schema)
    return _read_lines(path) if guessed else table


def _read_lines(path: Path) -> pa.Table:
    """A JSONL file line by line: slower, without guesses, and every complaint names its line."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in _numbered_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as exc:
            raise DataError(f"'{path}', line {number}: malformed JSON ({exc.msg} at character {exc.pos + 1}).") from exc
        rows.append(row)
        numbers.append(number)
    return _from_rows(rows, lambda index: f"'{path}', line {numbers[index]}")


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the lines that are not blank."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as exc:
                raise DataError(f"'{path}', line {number}: not UTF-8 text ({exc.reason}).") from exc
            if line.strip():
                yield number, line


def _read_json(path: Path) -> pa.Table:
    """A JSON file: one array of objects, or JSONL under another name."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as exc:
        raise DataError(f"'{path}', line {exc.lineno}: malformed JSON ({exc.msg} at column {exc.colno}).") from exc
    return _from_rows(rows, lambda index: f"'{path}', entry {index + 1}")


def _from_rows(rows: list[Any], where: Callable[[int], str]) -> pa.Table:
    """A table with every column that any row has; absent cells are null. `where` names a row for the error."""
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{where(index)}: holds {_kind(row)} where an object with columns is needed.")
    columns = dict.fromkeys(column for row in rows for column in row)
    return pa.table({column: _column([row.get(column) for row in rows], column, where) for column in columns})


def _column(cells: list[Any], name: str, where: Callable[[int], str]) -> pa.Array:
    """One column as Arrow. A cell unlike those before it is found by bisecting for the shortest prefix that fails."""
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        index = bisect_left(range(len(cells)), True, key=lambda last: not _fits(cells[: last + 1]))
        raise DataError(
            f"{where(index)}: column '{name}' holds {_kind(cells[index])} unlike the rows before ({exc})."
        ) from exc


def _fits(cells: list[Any]) -> bool:
    try:
        pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _kind(cell: object) -> str:
    if isinstance(cell, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names[type(cell)]


def _read_csv(path: Path) -> pa.Table:
    import pyarrow.csv

    parse_options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        return pyarrow.csv.read_csv(path, parse_options=parse_options)
    except pa.ArrowInvalid:  # one thread is slower, but its error names the row
        return pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(use_threads=False), parse_options)


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _read_arrow(path: Path) -> pa.Table:
    """An Arrow file, or the stream format that `datasets` writes."""
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
