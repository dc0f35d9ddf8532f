"""Sequences to rectangular micro-batches: sorted by length, bounded by padded tokens.

Sequences are padded on the right. Under causal attention a real token never sees the padding after it, so no attention
mask is needed and the attention kernel keeps its causal fast path. Rows of several documents are told apart by their
position ids, which begin anew with each: transformers then confines attention to the document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.errors import DataError


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch of prompt + response sequences.

    `positions` are the flat indices (row * length + column) of the states that predict each response token, in
    row-major order; `targets` are these tokens. `mask` [batch, time] marks the real response tokens, left-aligned, and
    `slots` are its flat indices, so that a flat [tokens] result becomes [batch, time].
    """

    input_ids: Tensor  # int64 [batch, length]
    positions: Tensor  # int64 [tokens]
    targets: Tensor  # int64 [tokens]
    slots: Tensor  # int64 [tokens]
    mask: Tensor  # bool [batch, time]
    position_ids: Tensor | None = None  # int64 [batch, length]; where rows hold several documents

    @classmethod
    def build(
        cls,
        sequences: Sequence[np.ndarray],
        prompt_lengths: Sequence[int] | np.ndarray,
        device: torch.device | str = "cpu",
    ) -> "TokenBatch":
        """Pad `sequences` (token ids, prompt then response). DataError for an empty prompt: nothing predicts on it."""
        lengths, prompts = np.array([len(s) for s in sequences]), np.asarray(prompt_lengths)
        if prompts.min() < 1:
            raise DataError(
                f"sequence {int(prompts.argmin())} of a micro-batch has an empty prompt, so nothing predicts its first "
                "token. Drop such rows from the data, or begin each prompt with a BOS token."
            )
        input_ids = _pad(sequences)
        columns = np.arange(max(int((lengths - prompts).max()), 1))
        mask = columns < (lengths - prompts)[:, None]
        rows, columns = np.nonzero(mask)
        positions = rows * input_ids.shape[1] + prompts[rows] - 1 + columns
        arrays = (input_ids, positions, input_ids.reshape(-1)[positions + 1], np.flatnonzero(mask), mask)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    @classmethod
    def of_documents(
        cls,
        rows: Sequence[Sequence[np.ndarray]],
        learned: Sequence[Sequence[np.ndarray]],
        device: torch.device | str = "cpu",
    ) -> "TokenBatch":
        """Rows of one or several documents (token ids) each, and for every document which tokens are of interest.

        `learned` holds a bool array per document. DataError where it marks a first token, on which nothing predicts.
        """
        if any(marks[0] for row in learned for marks in row):
            raise DataError(
                "the loss of a document covers its first token, which nothing predicts. Drop rows with an empty prompt "
                "from the data, or begin each prompt with a BOS token."
            )
        input_ids = _pad([np.concatenate(row) for row in rows])
        marked = _pad([np.concatenate(row) for row in learned]).astype(bool)
        counts = marked.sum(1)
        mask = np.arange(max(int(counts.max()), 1)) < counts[:, None]
        targets = np.flatnonzero(marked)
        arrays = [input_ids, targets - 1, input_ids.reshape(-1)[targets], np.flatnonzero(mask), mask]
        if any(len(row) > 1 for row in rows):
            arrays.append(_position_ids(rows, input_ids.shape[1]))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    @classmethod
    def of_last_tokens(cls, sequences: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "TokenBatch":
        """A batch whose only positions are each sequence's last token: where a reward model's score is read."""
        lengths = np.array([len(s) for s in sequences])
        if lengths.min() < 1:
            raise DataError(f"sequence {int(lengths.argmin())} of a micro-batch is empty: drop such rows from the data")
        input_ids = _pad(sequences)
        rows = np.arange(len(sequences))
        positions = rows * input_ids.shape[1] + lengths - 1
        arrays = (input_ids, positions, input_ids.reshape(-1)[positions], rows, np.ones((len(rows), 1), dtype=bool))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> "TokenBatch":
        """A pass without response tokens: keeps a rank without samples in step with the others."""
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        return cls(ids, nothing, nothing, nothing, torch.zeros(1, 1, dtype=torch.bool, device=device))

    def pad(self, flat: Tensor) -> Tensor:
        """[tokens] values to [batch, time], zero outside the mask."""
        padded = torch.zeros(self.mask.numel(), dtype=flat.dtype, device=flat.device)
        return padded.index_copy(0, self.slots, flat).view(self.mask.shape)

    def rows(self, ragged: Sequence[np.ndarray]) -> Tensor:
        """Per-sample float arrays (one number per response token) to [batch, time], zero outside the mask."""
        padded = np.zeros(self.mask.shape, dtype=np.float32)
        for row, values in enumerate(ragged):
            padded[row, : len(values)] = values
        return torch.from_numpy(padded).to(self.mask.device)

    def unpad(self, padded: Tensor) -> list[np.ndarray]:
        """[batch, time] to one float32 array per sample."""
        lengths = self.mask.sum(1).tolist()
        values = padded.detach().float().cpu().numpy()
        return [values[row, :length].copy() for row, length in enumerate(lengths)]


def _pad(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [batch, longest], zeros on the right. Token 0 is as good as any: nothing real sees it."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded


def _position_ids(rows: Sequence[Sequence[np.ndarray]], length: int) -> np.ndarray:
    """int64 [batch, length]: each document of a row counts from 0; padding counts on from the last one."""
    places = np.tile(np.arange(length), (len(rows), 1))
    for row, documents in zip(places, rows, strict=True):
        for start in np.cumsum([len(document) for document in documents])[:-1]:
            row[start:] = np.arange(length - start)
    return places


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
