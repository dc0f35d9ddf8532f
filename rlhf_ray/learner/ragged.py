"""A list column of an Arrow table, read row by row without boxing scalars."""

import numpy as np
import pyarrow as pa


class Ragged:
    """`ragged[row]` is the row's values as an array (a view), `lengths` [rows] how many there are.

    The column's chunks stay where they are, so that one mapped from a file is read as far as rows are asked for.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in column.chunks]
        self.lengths = np.concatenate([np.diff(offsets) for _, offsets in self._chunks] or [np.zeros(0, np.int32)])
        self._ends = np.cumsum([len(offsets) - 1 for _, offsets in self._chunks])  # of the chunks, in rows

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        values, offsets = self._chunks[chunk]
        row -= int(self._ends[chunk - 1]) if chunk else 0
        return values[offsets[row] : offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.lengths)
