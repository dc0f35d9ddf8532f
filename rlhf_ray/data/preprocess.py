"""The user's own function over rows: `data.preprocess=my_data:clean`, applied before anything else looks at them.

def clean(row: dict) -> dict | None: the row as it shall be, or None to leave it out.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rlhf_ray.data.rows import describe, table_from_rows
from rlhf_ray.errors import DataError
from rlhf_ray.importing import import_function

Preprocess = Callable[[dict[str, Any]], dict[str, Any] | None]


def find_preprocess(path: str) -> Preprocess:
    """The function at an import path. Raises ConfigError."""
    return import_function(path, "preprocess function")


def apply(function: Preprocess, table: pa.Table, where: Callable[[int], str]) -> tuple[pa.Table, list[int]]:
    """What the function makes of every row, and the indices of the rows that it kept.

    Columns get the types that the returned values need. Raises DataError naming the row (`where`) that the function
    failed on, or for which it returned something else than a row or None.
    """
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    for index, row in enumerate(table.to_pylist()):
        try:
            result = function(row)
        except Exception as exc:
            raise DataError(f"{where(index)}: data.preprocess raised {type(exc).__name__}: {exc}") from exc
        if result is None:
            continue
        if not isinstance(result, dict):
            raise DataError(
                f"{where(index)}: data.preprocess must return a row (dict) or None, not {describe(result)}."
            )
        rows.append(dict(result))  # a function may return the same dict every time
        kept.append(index)
    return table_from_rows(rows, lambda index: f"after data.preprocess, {where(kept[index])}"), kept
