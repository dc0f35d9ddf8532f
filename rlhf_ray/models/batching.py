"""Sequences to rectangular micro-batches: sorted by length, bounded by padded tokens.

Sequences are padded on the right. Under causal attention a real token never sees the padding after it, so no attention
mask is needed and the attention kernel keeps its causal fast path. Several sequences in one row are told apart by
their position ids, which begin anew with each: transformers then confines attention to the sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.errors import DataError

Rows = Sequence[Sequence[int]]  # the sequences (by number) that lie behind each other in each row of a batch


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch of prompt + response sequences: one in each row of `input_ids`, or several.

    `positions` are the flat indices (row * length + column) of the states that predict each response token, sequence by
    sequence; `targets` are these tokens. `mask` [sequences, time] marks the real response tokens, left-aligned, and
    `slots` are its flat indices, so that a flat [tokens] result becomes [sequences, time].
    """

    input_ids: Tensor  # int64 [rows, length]
    positions: Tensor  # int64 [tokens]
    targets: Tensor  # int64 [tokens]
    slots: Tensor  # int64 [tokens]
    mask: Tensor  # bool [sequences, time]
    position_ids: Tensor | None = None  # int64 [rows, length]; where rows hold several sequences

    @classmethod
    def build(
        cls,
        sequences: Sequence[np.ndarray],
        prompt_lengths: Sequence[int] | np.ndarray,
        device: torch.device | str = "cpu",
        rows: Rows | None = None,
    ) -> "TokenBatch":
        """Lay out `sequences` (token ids, prompt then response) in `rows`, or one in each.

        DataError for an empty prompt: nothing predicts on it.
        """
        lengths, prompts = np.array([len(s) for s in sequences]), np.asarray(prompt_lengths)
        if prompts.min() < 1:
            raise DataError(
                f"sequence {int(prompts.argmin())} of a micro-batch has an empty prompt, so nothing predicts its first "
                "token. Drop such rows from the data, or begin each prompt with a BOS token."
            )
        columns = np.arange(max(int((lengths - prompts).max()), 1))
        mask = columns < (lengths - prompts)[:, None]
        owners, columns = np.nonzero(mask)
        return cls._of(sequences, rows, mask, owners, prompts[owners] - 1 + columns, device)

    @classmethod
    def of_marked(
        cls,
        sequences: Sequence[np.ndarray],
        marks: Sequence[np.ndarray],
        device: torch.device | str = "cpu",
        rows: Rows | None = None,
    ) -> "TokenBatch":
        """A batch whose response tokens are those that `marks` (a bool array per sequence) names, wherever they stand.

        DataError where it marks a first token, on which nothing predicts.
        """
        if any(mark[0] for mark in marks):
            raise DataError(
                "the loss of a row covers its first token, which nothing predicts. Drop rows with an empty prompt "
                "from the data, or begin each prompt with a BOS token."
            )
        counts = np.array([int(mark.sum()) for mark in marks])
        mask = np.arange(max(int(counts.max()), 1)) < counts[:, None]
        owners, columns = np.nonzero(_pad(marks))
        return cls._of(sequences, rows, mask, owners, columns - 1, device)

    @classmethod
    def of_last_tokens(
        cls, sequences: Sequence[np.ndarray], device: torch.device | str = "cpu", rows: Rows | None = None
    ) -> "TokenBatch":
        """A batch whose only positions are each sequence's last token: where a reward model's score is read."""
        lengths = np.array([len(s) for s in sequences])
        if lengths.min() < 1:
            raise DataError(f"sequence {int(lengths.argmin())} of a micro-batch is empty: drop such rows from the data")
        mask = np.ones((len(sequences), 1), dtype=bool)
        # Its states are read, and predict nothing: any token serves as their target.
        return cls._of(sequences, rows, mask, np.arange(len(sequences)), lengths - 1, device, ahead=0)

    @classmethod
    def _of(
        cls,
        sequences: Sequence[np.ndarray],
        rows: Rows | None,
        mask: np.ndarray,
        owners: np.ndarray,
        places: np.ndarray,
        device: torch.device | str,
        ahead: int = 1,
    ) -> "TokenBatch":
        """Positions are `places[i]` in sequence `owners[i]`; their targets stand `ahead` tokens further on."""
        input_ids, starts, position_ids = _layout(sequences, rows)
        positions = starts[owners] + places
        arrays = [input_ids, positions, input_ids.reshape(-1)[positions + ahead], np.flatnonzero(mask), mask]
        if position_ids is not None:
            arrays.append(position_ids)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> "TokenBatch":
        """A pass without response tokens: keeps a rank without samples in step with the others."""
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        return cls(ids, nothing, nothing, nothing, torch.zeros(1, 1, dtype=torch.bool, device=device))

    def pad(self, flat: Tensor) -> Tensor:
        """[tokens] values to [sequences, time], zero outside the mask."""
        padded = torch.zeros(self.mask.numel(), dtype=flat.dtype, device=flat.device)
        return padded.index_copy(0, self.slots, flat).view(self.mask.shape)

    def rows(self, ragged: Sequence[np.ndarray]) -> Tensor:
        """Per-sample float arrays (one number per response token) to [sequences, time], zero outside the mask."""
        padded = np.zeros(self.mask.shape, dtype=np.float32)
        for row, values in enumerate(ragged):
            padded[row, : len(values)] = values
        return torch.from_numpy(padded).to(self.mask.device)

    def unpad(self, padded: Tensor) -> list[np.ndarray]:
        """[sequences, time] to one float32 array per sample."""
        lengths = self.mask.sum(1).tolist()
        values = padded.detach().float().cpu().numpy()
        return [values[row, :length].copy() for row, length in enumerate(lengths)]


def _pad(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [batch, longest], zeros on the right. Token 0 is as good as any: nothing real sees it."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded


def _layout(sequences: Sequence[np.ndarray], rows: Rows | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """int64 [rows, length] tokens, the flat index at which each sequence begins, and position ids [rows, length].

    Each sequence of a row counts from 0, padding counts on from the last one; None where all rows hold one sequence.
    """
    if rows is None or len(rows) == len(sequences):
        input_ids = _pad(sequences)
        return input_ids, np.arange(len(sequences)) * input_ids.shape[1], None
    input_ids = _pad([np.concatenate([sequences[i] for i in row]) for row in rows])
    starts, positions = np.zeros(len(sequences), dtype=np.int64), np.zeros_like(input_ids)
    for number, row in enumerate(rows):
        begin = 0
        for i in row:
            starts[i] = number * input_ids.shape[1] + begin
            positions[number, begin:] = np.arange(input_ids.shape[1] - begin)
            begin += len(sequences[i])
    return input_ids, starts, positions


def split_by_tokens(lengths: Sequence[int] | np.ndarray, tokens_per_microbatch: int) -> list[list[int]]:
    """Indices grouped into micro-batches of similar length with at most `tokens_per_microbatch` padded tokens each.

    Longest first, each group filled before the next begins. A sequence longer than the bound gets a micro-batch of its
    own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i))
    groups: list[list[int]] = []
    for index in order:
        longest = int(lengths[groups[-1][0]]) if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= tokens_per_microbatch:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
