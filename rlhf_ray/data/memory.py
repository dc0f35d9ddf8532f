"""Prompts that a program holds in memory, as a file that a configuration can name."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlhf_ray.data.rows import describe, table_from_rows
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PROMPT_COLUMN = "prompt"


def save_prompts(prompts: "Sequence[Any] | Dataset | pa.Table", folder: str | Path) -> Path:
    """Write prompts to `folder` as Parquet named by its content, so that equal prompts are one file; returns its path.

    `prompts` is a table, a `datasets.Dataset`, or a list of strings or conversations (column `prompt`) or of rows
    (dicts: prompt and further columns). Raises DataError for anything else, and for no prompts at all.
    """
    import pyarrow.parquet

    table = _table(prompts)
    if not table.num_rows:
        raise DataError("There are no prompts: the list or dataset is empty.")
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table.combine_chunks(), buffer)
    content = buffer.getvalue()
    path = Path(folder).expanduser() / f"prompts-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_bytes(content)
        aside.replace(path)
    return path


def _table(prompts: Any) -> pa.Table:
    if isinstance(prompts, pa.Table):
        return prompts.replace_schema_metadata(None)
    if hasattr(prompts, "with_format") and hasattr(prompts, "num_rows"):  # datasets.Dataset, which need not be imported
        return prompts.with_format("arrow")[:].replace_schema_metadata(None)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise DataError(
            f"Prompts must be a list of strings or rows, a Dataset or an Arrow table, not {describe(prompts)}. "
            "The path of a file goes into data.path."
        )
    rows = [{PROMPT_COLUMN: item} if isinstance(item, str | list) else item for item in prompts]
    return table_from_rows(rows, lambda index: f"prompt {index} (the first is 0)")
