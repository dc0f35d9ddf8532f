"""Rows of a list column are the same however the column is cut into chunks."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.learner.ragged import Ragged

pytestmark = pytest.mark.unit

ROWS = [[1, 2, 3], [], [4], [5, 6], [7]]


@pytest.mark.parametrize("cuts", [[5], [2, 3], [1, 0, 4], [1, 1, 1, 1, 1], [0, 5, 0]])
def test_chunks_do_not_show(cuts):
    ends = np.cumsum([0, *cuts])
    chunks = [pa.array(ROWS[start:end], pa.list_(pa.int32())) for start, end in pairwise(ends)]
    ragged = Ragged(pa.chunked_array(chunks))
    assert [ragged[row].tolist() for row in range(len(ragged))] == ROWS
    assert ragged.lengths.tolist() == [3, 0, 1, 2, 1]


def test_a_slice_has_its_own_rows():
    ragged = Ragged(pa.chunked_array([pa.array(ROWS, pa.list_(pa.int32()))]).slice(2, 2))
    assert [ragged[0].tolist(), ragged[1].tolist()] == [[4], [5, 6]]


def test_a_column_without_rows_has_no_lengths():
    assert len(Ragged(pa.chunked_array([], pa.list_(pa.int32())))) == 0
