"""Rows as Python objects to an Arrow table; what does not fit is named with its row."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rlhf_ray.errors import DataError


def table_from_rows(rows: list[Any], where: Callable[[int], str]) -> pa.Table:
    """A table with every column that any row has; absent cells are null. `where` names a row for the DataError."""
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{where(index)}: holds {describe(row)} where an object with columns is needed.")
    columns = dict.fromkeys(column for row in rows for column in row)
    return pa.table({column: _column([row.get(column) for row in rows], column, where) for column in columns})


def describe(cell: object) -> str:
    """The kind of a cell in words."""
    if isinstance(cell, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(cell), f"a {type(cell).__name__}")


def _column(cells: list[Any], name: str, where: Callable[[int], str]) -> pa.Array:
    """One column as Arrow. A cell unlike those before it is found by bisecting for the shortest prefix that fails."""
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as exc:
        index = bisect_left(range(len(cells)), True, key=lambda last: not _fits(cells[: last + 1]))
        raise DataError(
            f"{where(index)}: column '{name}' holds {describe(cells[index])} unlike the rows before ({exc})."
        ) from exc


def _fits(cells: list[Any]) -> bool:
    try:
        pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return False
    return True
