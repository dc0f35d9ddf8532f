"""Which columns and which rows of a source are used."""

import numpy as np
import pyarrow as pa

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.order import epoch_order
from rlhf_ray.data.sources import load_table
from rlhf_ray.errors import DataError


class Source:
    """A source's rows as chosen by a section: the table, each row's position in the source, and names for errors.

    `path` replaces the section's own (for held-out data); max_samples then does not apply.
    """

    def __init__(self, section: DataSection, path: str | None = None):
        self.path = path or section.path
        table = load_table(self.path, section.split, section.subset)
        self.rows_read: int = table.num_rows
        self.positions = _choose(table.num_rows, section) if path is None else np.arange(table.num_rows)
        self.table: pa.Table = table if len(self.positions) == table.num_rows else table.take(self.positions)

    def has(self, column: str) -> bool:
        return column in self.table.column_names

    def require(self, *columns: str) -> None:
        """Raise DataError unless all these columns are there."""
        missing = [column for column in columns if not self.has(column)]
        if missing:
            raise DataError(
                f"'{self.path}' has no column {_names(missing)}: required are {_names(columns)}, "
                f"found are {_names(self.table.column_names)}. Set data.*_column to the names used there."
            )

    def cells(self, column: str) -> list[object]:
        return self.table.column(column).to_pylist()

    def where(self, column: str) -> list[str]:
        """One name per row for error messages."""
        return [f"'{self.path}', row {position} (the first is 0), column '{column}'" for position in self.positions]


def _choose(rows: int, section: DataSection) -> np.ndarray:
    """Positions of the rows used, ascending. With shuffling, max_samples draws them from all over the source; the draw
    does not depend on the run's seed, so that runs with different seeds see the same data."""
    if section.max_samples is None or section.max_samples >= rows:
        return np.arange(rows)
    return np.sort(epoch_order(rows, seed=0, epoch=0, shuffle=section.shuffle)[: section.max_samples])


def _names(columns: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"'{column}'" for column in columns)
