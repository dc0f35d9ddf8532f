"""Where rows come from: a file, a folder, a dataset saved to disk or on the hub; whole, or streamed in batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray.data.files import endings, is_data_file, read_file, read_in_batches
from rlhf_ray.errors import DataError
from rlhf_ray.hub import ask_hub, explain_hub_error, looks_like_path, unreachable


def load_table(path: str, split: str = "train", subset: str | None = None) -> pa.Table:
    """The rows of a JSONL, JSON, CSV, Parquet or Arrow file, a folder of them, or a hub dataset's split.

    A path that exists always wins over a hub name. Raises DataError for a missing, malformed or empty source,
    ConfigError for a hub dataset that is absent, gated or out of reach.
    """
    if not (local := _local(path)):
        table = _read_hub_dataset(path, split, subset)
    elif _is_saved(local):
        table = _arrow(_load_saved(local, split))
    else:
        table = join([read_file(file) for file in _files(local, split)], path)
    if table.num_rows == 0:
        raise DataError(f"The dataset '{path}' has no rows.")
    return table


def stream_tables(
    path: str, split: str = "train", subset: str | None = None, rows: int = 1024, *, lazy: bool = True
) -> Iterator[pa.Table]:
    """The same rows in the same order, in tables of at most `rows`; little is read before it is asked for.

    A hub dataset is downloaded as its rows are asked for, or whole and into the cache first (lazy=False).

    The tables may differ in columns and types as far as each saw only part of the source; `join` unites them.
    """
    if not (local := _local(path)):
        yield from _stream_hub_dataset(path, split, subset, rows, lazy)
    elif _is_saved(local):
        yield from _arrow_batches(_load_saved(local, split), rows)
    else:
        for file in _files(local, split):
            yield from read_in_batches(file, rows)


def join(tables: list[pa.Table], source: str) -> pa.Table:
    """Tables as one; columns that some lack are null there. Raises DataError where a column's types disagree."""
    if len(tables) == 1:
        return tables[0]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise DataError(f"The parts of '{source}' do not have the same columns: {exc}") from exc


# --- local ---


def _local(path: str) -> Path | None:
    """The existing file or folder, or None for what must be a hub name. Raises DataError for a path to nowhere."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    if is_data_file(local) or looks_like_path(path):
        raise DataError(f"The data file '{path}' does not exist (looked in {Path.cwd()}).")
    return None


def _files(path: Path, split: str) -> list[Path]:
    """The file itself, or the data files below a folder that are named after the split (for `train` also: all)."""
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if is_data_file(file)]
    if not files:
        raise DataError(f"The folder '{path}' holds no data file (one of {endings()}).")
    of_split = [file for file in files if file.stem == split or file.stem.startswith((f"{split}-", f"{split}_"))]
    if not of_split and split != "train":
        raise DataError(
            f"The folder '{path}' holds no file of the split '{split}', which would be named {split}.jsonl, "
            f"{split}-00000.parquet or the like. Parts of a split ('train[:100]') are for hub datasets only."
        )
    return of_split or files


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by the `save_to_disk` of `datasets`."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _load_saved(folder: Path, split: str) -> Any:
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise DataError(f"'{folder}' has no split '{split}'; it has {', '.join(saved)}. Set data.split.")
    return saved[split]


# --- the hub ---


def _read_hub_dataset(name: str, split: str, subset: str | None) -> pa.Table:
    import datasets

    _hub_answers(name)
    try:
        return _arrow(datasets.load_dataset(name, subset, split=split))
    except (OSError, ValueError, RuntimeError) as exc:
        raise explain_hub_error(name, exc, "dataset") from exc


def _stream_hub_dataset(name: str, split: str, subset: str | None, rows: int, lazy: bool) -> Iterator[pa.Table]:
    """Downloads as it goes if `lazy`; without a network, the dataset's copy in the local cache."""
    import datasets

    online = _hub_answers(name) and lazy
    try:
        yield from _arrow_batches(datasets.load_dataset(name, subset, split=split, streaming=online), rows)
    except (OSError, ValueError, RuntimeError) as exc:
        raise explain_hub_error(name, exc, "dataset") from exc


def _hub_answers(name: str) -> bool:
    """Whether the hub is in reach. Raises ConfigError when it is not and the cache does not hold the dataset."""
    import datasets

    if ask_hub(name, "README.md", repo_type="dataset") != "out of reach":
        return True
    if not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()).is_dir():
        raise unreachable(name, "dataset")
    return False


def _arrow(dataset: Any) -> pa.Table:
    """The table of a `datasets.Dataset`, with its selection and order applied and without its metadata."""
    return dataset.with_format("arrow")[:].replace_schema_metadata(None)


def _arrow_batches(dataset: Any, rows: int) -> Iterator[pa.Table]:
    for table in dataset.with_format("arrow").iter(batch_size=rows):
        yield table.replace_schema_metadata(None)
