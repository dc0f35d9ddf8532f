"""What loading did to the rows: nothing is dropped or cut without being counted."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class RowCounts:
    """What became of a source's rows before any was made into tokens."""

    read: int
    dropped_by_preprocess: int = 0
    other_messages: int = 0  # rows of a message tree that are part of other rows' conversations only


@dataclass(frozen=True)
class DataReport:
    """Counts of one loading. Lengths are in tokens."""

    rows: RowCounts
    kept: int
    dropped_too_long: int
    truncated: int
    longest_tokens: int
    token_limit: int

    def describe(self) -> str:
        """One line for the console, e.g. `1,200 rows, longest 211 of at most 256 tokens; 3 dropped as too long`."""
        line = f"{self.kept:,} rows, longest {self.longest_tokens:,} of at most {self.token_limit:,} tokens"
        if self.rows.other_messages:
            line += f"; {self.rows.other_messages:,} other messages of the trees"
        if self.rows.dropped_by_preprocess:
            line += f"; {self.rows.dropped_by_preprocess:,} dropped by preprocess"
        if self.dropped_too_long:
            line += f"; {self.dropped_too_long:,} dropped as too long"
        if self.truncated:
            line += f"; {self.truncated:,} truncated"
        if self.left_out:
            line += f"; {self.left_out:,} left out by max_samples"
        return line

    @property
    def left_out(self) -> int:
        """Rows that max_samples did not choose."""
        usable = self.rows.read - self.rows.dropped_by_preprocess - self.rows.other_messages
        return usable - self.kept - self.dropped_too_long


@dataclass(frozen=True)
class Loaded:
    """A table in one of the layouts of `rlhf_ray.schema`, and how it came about."""

    table: pa.Table
    report: DataReport
