"""What loading did to the rows: nothing is dropped or cut without being counted."""

from dataclasses import dataclass, field, fields, replace
from tempfile import TemporaryDirectory
from typing import Any, Self

import pyarrow as pa

from rlhf_ray.data.spool import MappedTable, table_file


@dataclass(frozen=True)
class RowCounts:
    """What became of a source's rows before any was made into tokens."""

    read: int = 0
    dropped_by_preprocess: int = 0
    other_messages: int = 0  # rows of a message tree that are part of other rows' conversations only
    left_out: int = 0  # rows that max_samples did not choose
    ties: int = 0  # comparisons of two responses, neither of which was judged better, that were left out

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


@dataclass(frozen=True)
class DataReport:
    """Counts of one loading. Lengths are in tokens."""

    rows: RowCounts
    kept: int
    dropped_too_long: int
    truncated: int
    longest_tokens: int
    token_limit: int

    def of(self, rows: int) -> Self:
        """The report of `rows` of the rows kept."""
        return replace(self, kept=rows)

    def describe(self) -> str:
        """One line for the console, e.g. `1,200 rows, longest 211 of at most 256 tokens; 3 dropped as too long`."""
        line = f"{self.kept:,} rows, longest {self.longest_tokens:,} of at most {self.token_limit:,} tokens"
        counts = {
            "other messages of the trees": self.rows.other_messages,
            "dropped by preprocess": self.rows.dropped_by_preprocess,
            "ties left out": self.rows.ties,
            "dropped as too long": self.dropped_too_long,
            "truncated": self.truncated,
            "left out by max_samples": self.rows.left_out,
        }
        return line + "".join(f"; {count:,} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True)
class Loaded:
    """A table in one of the layouts of `rlhf_ray.schema`, and how it came about."""

    table: pa.Table
    report: DataReport
    folder: TemporaryDirectory[str] | None = field(
        default=None, repr=False
    )  # of the file that the table is mapped from

    def shared(self) -> Any:
        """What to hand to other processes: the table, or a stand-in that becomes the table where it is unpickled."""
        return MappedTable(table_file(self.folder)) if self.folder else self.table
