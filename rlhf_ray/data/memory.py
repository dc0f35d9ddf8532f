"""Data that a program holds in memory, as a file that a configuration can name."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlhf_ray.data.rows import describe, table_from_rows
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RowKind:
    """What rows are called, and the columns for those that are no dicts; None: they must be dicts."""

    name: str  # in the plural
    text_column: str | None = None
    conversation_column: str | None = None


PROMPTS = RowKind("prompts", "prompt", "prompt")
DEMONSTRATIONS = RowKind("demonstrations", "text", "messages")
PREFERENCES = RowKind("preferences")


def save_prompts(prompts: "Sequence[Any] | Dataset | pa.Table", folder: str | Path) -> Path:
    """`save_rows` of prompts."""
    return save_rows(prompts, folder, PROMPTS)


def save_rows(rows: "Sequence[Any] | Dataset | pa.Table", folder: str | Path, kind: RowKind) -> Path:
    """Write rows to `folder` as Parquet named by its content, so that equal rows are one file; returns its path.

    `rows` is a table, a `datasets.Dataset`, or a list: of dicts with the columns of the kind and further ones, or of
    strings or conversations where the kind has a column for them. Raises DataError for anything else, and for no rows.
    """
    import pyarrow.parquet

    table = _table(rows, kind)
    if not table.num_rows:
        raise DataError(f"There are no {kind.name}: the list or dataset is empty.")
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table.combine_chunks(), buffer)
    content = buffer.getvalue()
    path = Path(folder).expanduser() / f"{kind.name}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_bytes(content)
        aside.replace(path)
    return path


def _table(rows: Any, kind: RowKind) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows.replace_schema_metadata(None)
    if hasattr(rows, "with_format") and hasattr(rows, "num_rows"):  # datasets.Dataset, which need not be imported
        return rows.with_format("arrow")[:].replace_schema_metadata(None)
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        forms = "strings or rows" if kind.text_column else "rows (dicts)"
        raise DataError(
            f"{kind.name.capitalize()} must be a list of {forms}, a Dataset or an Arrow table, not {describe(rows)}. "
            "The path of a file goes into data.path."
        )
    columns: dict[type, str | None] = {str: kind.text_column, list: kind.conversation_column}
    dicts = [{column: row} if (column := columns.get(type(row))) else row for row in rows]
    return table_from_rows(dicts, lambda index: f"{kind.name.removesuffix('s')} {index} (the first is 0)")
