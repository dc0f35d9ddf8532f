"""A list column of an Arrow table, read row by row without boxing scalars."""

import numpy as np
import pyarrow as pa


class Ragged:
    """`ragged[row]` is the row's values as an array (a view), `lengths` [rows] how many there are."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        lists = column.combine_chunks()
        self._values, self._offsets = lists.values.to_numpy(), lists.offsets.to_numpy()

    def __getitem__(self, row: int) -> np.ndarray:
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self._offsets)
