"""Ragged sequences to micro-batches and back; what padding and prompts may not do."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.errors import DataError
from rlhf_ray.models.batching import TokenBatch, split_by_tokens

pytestmark = pytest.mark.unit

SEQUENCES = [np.array([5, 6, 7, 8, 9]), np.array([1, 2]), np.array([3, 4, 11, 12])]
PROMPTS = [2, 1, 3]


def test_positions_and_targets_of_ragged_prompts():
    batch = TokenBatch.build(SEQUENCES, PROMPTS)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0], [3, 4, 11, 12, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    # The state before each response token predicts it: row * 5 + column.
    assert batch.positions.tolist() == [1, 2, 3, 5, 12]
    assert batch.targets.tolist() == [7, 8, 9, 2, 12]


def test_a_response_without_tokens_has_no_position():
    batch = TokenBatch.build([np.array([1, 2]), np.array([3, 4, 5])], [2, 1])
    assert batch.mask.tolist() == [[False, False], [True, True]]
    assert batch.targets.tolist() == [4, 5]


def test_sequences_share_rows_and_are_told_apart_by_their_positions():
    marks = [np.array(mark, bool) for mark in ([0, 1, 0, 1, 1], [0, 1], [0, 0, 0, 1])]
    batch = TokenBatch.of_marked(SEQUENCES, marks, rows=[[2], [0, 1]])
    assert batch.input_ids.tolist() == [[3, 4, 11, 12, 0, 0, 0], [5, 6, 7, 8, 9, 1, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 0, 1]]
    # Sequence by sequence, wherever these lie.
    assert batch.targets.tolist() == [6, 8, 9, 2, 12]
    assert batch.positions.tolist() == [7, 9, 10, 12, 2]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert batch.pad(torch.arange(1.0, 6.0)).tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]


@pytest.mark.parametrize("rows", [None, [[2], [0], [1]]])
def test_one_sequence_per_row_is_the_plain_batch(rows):
    marks = [np.arange(len(tokens)) >= prompt for tokens, prompt in zip(SEQUENCES, PROMPTS, strict=True)]
    marked, plain = TokenBatch.of_marked(SEQUENCES, marks, rows=rows), TokenBatch.build(SEQUENCES, PROMPTS, rows=rows)
    assert marked.position_ids is None
    for name in ("input_ids", "positions", "targets", "slots", "mask"):
        assert torch.equal(getattr(marked, name), getattr(plain, name))


def test_a_sequence_s_first_token_has_nothing_to_predict_it():
    with pytest.raises(DataError, match="covers its first token"):
        TokenBatch.of_marked([SEQUENCES[1]], [np.array([True, True])])


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match=r"sequence 1 .*empty prompt"):
        TokenBatch.build(SEQUENCES, [2, 0, 3])


def test_pad_places_values_by_row_and_passes_their_gradients():
    batch = TokenBatch.build(SEQUENCES, PROMPTS)
    flat = torch.arange(1.0, 6.0, requires_grad=True)
    padded = batch.pad(flat)
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]
    weights = torch.tensor([[1.0, 2, 3], [4, 100, 100], [5, 100, 100]])
    (gradient,) = torch.autograd.grad((padded * weights).sum(), flat)
    assert gradient.tolist() == [1, 2, 3, 4, 5]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=8))
def test_rows_pad_unpad_round_trip(shapes):
    sequences = [np.arange(prompt + response) for prompt, response in shapes]
    batch = TokenBatch.build(sequences, [prompt for prompt, _ in shapes])
    ragged = [np.arange(1, response + 1, dtype=np.float32) for _, response in shapes]
    padded = batch.rows(ragged)
    assert torch.equal(batch.pad(padded[batch.mask]), padded)
    for row, values in zip(batch.unpad(padded), ragged, strict=True):
        np.testing.assert_array_equal(row, values)


def test_last_tokens():
    batch = TokenBatch.of_last_tokens([np.array([7]), np.array([1, 2, 3])])
    assert batch.positions.tolist() == [0, 5]
    assert batch.pad(torch.tensor([0.5, 1.5])).tolist() == [[0.5], [1.5]]
    with pytest.raises(DataError, match=r"sequence 0 .*empty"):
        TokenBatch.of_last_tokens([np.array([], dtype=int)])


def test_the_empty_batch_is_a_valid_input_without_tokens():
    batch = TokenBatch.empty()
    assert batch.input_ids.numel()
    assert not batch.mask.any()
    assert not len(batch.positions)
    assert batch.pad(torch.zeros(0)).tolist() == [[0.0]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_split_by_tokens_bounds_the_padded_size(lengths, limit):
    groups = split_by_tokens(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= limit
    # No group could have taken the longest sequence of the next one.
    for group, after in pairwise(groups):
        assert max(lengths[i] for i in group) * (len(group) + 1) > limit
        assert min(lengths[i] for i in group) >= max(lengths[i] for i in after)
