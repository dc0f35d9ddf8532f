"""Which columns and which rows of a source are used."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow as pa

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.order import epoch_order
from rlhf_ray.data.preprocess import apply, find_preprocess
from rlhf_ray.data.report import RowCounts
from rlhf_ray.data.sources import join, load_table, stream_tables
from rlhf_ray.data.trees import grow, is_tree
from rlhf_ray.errors import ConfigError, DataError

STREAM_ROWS = 1024  # rows per table of a stream, at most


@dataclass(frozen=True)
class _Rows:
    """Some rows of a source."""

    table: pa.Table
    positions: np.ndarray  # int64 [rows], ascending: which rows of the source they are

    def __len__(self) -> int:
        return self.table.num_rows

    def take(self, indices: np.ndarray) -> "_Rows":
        return _Rows(self.table.take(indices), self.positions[indices])


class Source:
    """A source's rows as chosen by a section: the table, each row's position in the source, and names for errors."""

    def __init__(self, path: str, rows: _Rows, counts: RowCounts) -> None:
        self.path, self.counts = path, counts
        self.table: pa.Table = rows.table
        self.positions: np.ndarray = rows.positions

    @classmethod
    def whole(
        cls,
        section: DataSection,
        path: str | None = None,
        *,
        tree_column: str = "",
        tree_speaker: Literal["user", "assistant"] = "user",
    ) -> Self:
        """All rows at once.

        Rows are preprocessed, then those of message trees (text in `tree_column`) become conversations that end with a
        message of `tree_speaker`, then max_samples chooses. `path` replaces the section's own (for held-out data);
        max_samples and streaming then do not apply.
        """
        reading = _Reading(section, path)
        limit = section.max_samples if path is None else None
        if streamed := section.streaming and limit is not None:
            rows, read = reading.first(limit)
        else:
            table = load_table(reading.path, section.split, section.subset)
            rows, read = reading.preprocessed(table, 0), table.num_rows
        if not len(rows):
            raise reading.nothing_left(read)

        messages = len(rows)
        if is_tree(rows.table, tree_column):
            if streamed:
                raise ConfigError(
                    f"data.streaming: '{reading.path}' holds message trees, which must be read whole, as the message "
                    "that another one answers may stand anywhere. Set data.streaming=false; max_samples still applies."
                )
            rows = reading.grown(rows, tree_column, tree_speaker)
        chosen = _choose(rows, limit, section.shuffle)
        counts = RowCounts(
            read,
            dropped_by_preprocess=read - messages,
            other_messages=messages - len(rows),
            left_out=len(rows) - len(chosen),
        )
        return cls(reading.path, chosen, counts)

    @classmethod
    def parts(cls, section: DataSection, path: str | None = None, *, tree_column: str = "") -> Iterator[Self]:
        """The same rows, a few at a time where nothing asks for all of them: neither max_samples nor message trees,
        of which every message of the assistant ends a conversation."""
        reading = _Reading(section, path)
        if path is None and section.max_samples is not None:
            yield cls.whole(section, path, tree_column=tree_column, tree_speaker="assistant")
            return
        read = kept = 0
        for table in stream_tables(reading.path, section.split, section.subset, STREAM_ROWS, lazy=False):
            rows = reading.preprocessed(table, read)
            if is_tree(rows.table, tree_column):
                yield cls.whole(section, path, tree_column=tree_column, tree_speaker="assistant")
                return
            counts = RowCounts(table.num_rows, dropped_by_preprocess=table.num_rows - len(rows))
            read, kept = read + table.num_rows, kept + len(rows)
            yield cls(reading.path, rows, counts)
        if not kept:
            raise reading.nothing_left(read)

    def has(self, *columns: str) -> bool:
        return {*columns} <= {*self.table.column_names}

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
        return [f"{row_name(self.path, position)}, column '{column}'" for position in self.positions]


class _Reading:
    """Reads and prepares the rows of a section's source, or of `path` in its place."""

    def __init__(self, section: DataSection, path: str | None) -> None:
        self.path, self.section = path or section.path, section
        self.function = find_preprocess(section.preprocess) if section.preprocess else None

    def nothing_left(self, read: int) -> DataError:
        if not read:
            return DataError(f"The dataset '{self.path}' has no rows.")
        return DataError(f"data.preprocess left none of the {read:,} rows of '{self.path}'.")

    def preprocessed(self, table: pa.Table, first: int) -> _Rows:
        """The rows of `table` that the function keeps; the table's first row is row `first` of the source."""
        positions = np.arange(first, first + table.num_rows)
        if self.function is None:
            return _Rows(table, positions)
        table, kept = apply(self.function, table, lambda index: row_name(self.path, first + index))
        return _Rows(table, positions[kept])

    def first(self, wanted: int) -> tuple[_Rows, int]:
        """The first `wanted` rows that the function keeps, and how many rows had to be read for them."""
        parts: list[_Rows] = []
        read = 0
        section = self.section
        for table in stream_tables(self.path, section.split, section.subset, min(wanted, STREAM_ROWS)):
            part = self.preprocessed(table, read)
            missing = wanted - sum(map(len, parts))
            if len(part) >= missing:
                parts.append(_Rows(part.table.slice(0, missing), part.positions[:missing]))
                read = int(part.positions[missing - 1]) + 1
                break
            parts.append(part)
            read += table.num_rows
        if not read:
            raise self.nothing_left(read)
        filled = [part for part in parts if len(part)] or parts[:1]
        return _Rows(
            join([part.table for part in filled], self.path), np.concatenate([part.positions for part in filled])
        ), read

    def grown(self, rows: _Rows, column: str, speaker: str) -> _Rows:
        table, kept = grow(rows.table, column, speaker, lambda index: row_name(self.path, rows.positions[index]))
        if not kept:
            raise DataError(f"'{self.path}': none of its {len(rows):,} messages is the {speaker}'s.")
        return _Rows(table, rows.positions[kept])


def row_name(path: str, position: int) -> str:
    """How errors name a row of a source."""
    return f"'{path}', row {position} (the first is 0)"


def _choose(rows: _Rows, limit: int | None, shuffle: bool) -> _Rows:
    """At most `limit` rows. With shuffling they are drawn from all over the source; the draw does not depend on the
    run's seed, so that runs with different seeds see the same data."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(np.sort(epoch_order(len(rows), seed=0, epoch=0, shuffle=shuffle)[:limit]))


def _names(columns: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"'{column}'" for column in columns)
