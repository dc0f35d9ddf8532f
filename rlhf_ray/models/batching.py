"""Sequences to rectangular micro-batches: sorted by length, bounded by padded tokens.

Sequences are padded on the right. Under causal attention a real token never sees the padding after it, so no attention
mask is needed and the attention kernel keeps its causal fast path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch of prompt + response sequences.

    `positions` are the flat indices (row * length + column) of the states that predict each response token, in row-major
    order; `targets` are these tokens. `mask` [batch, time] marks the real response tokens, left-aligned, so that a flat
    [tokens] result becomes [batch, time] by `mask`'s own order.
    """

    input_ids: Tensor  # int64 [batch, length]
    positions: Tensor  # int64 [tokens]
    targets: Tensor  # int64 [tokens]
    mask: Tensor  # bool [batch, time]

    @classmethod
    def build(
        cls, sequences: Sequence[np.ndarray], prompt_lengths: Sequence[int], device: torch.device | str = "cpu"
    ) -> "TokenBatch":
        """Pad `sequences` (token ids, prompt then response). An empty prompt cannot predict its first token."""
        length = max(len(sequence) for sequence in sequences)
        time = max(len(s) - p for s, p in zip(sequences, prompt_lengths, strict=True))
        input_ids = np.zeros((len(sequences), length), dtype=np.int64)
        mask = np.zeros((len(sequences), max(time, 1)), dtype=bool)
        positions = []
        for row, (sequence, prompt) in enumerate(zip(sequences, prompt_lengths, strict=True)):
            input_ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence) - prompt] = True
            positions.append(np.arange(prompt - 1, len(sequence) - 1) + row * length)
        flat = np.concatenate(positions)
        targets = input_ids.reshape(-1)[flat + 1]
        to = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        return cls(to(input_ids), to(flat), to(targets), to(mask))

    @classmethod
    def of_last_tokens(cls, sequences: Sequence[np.ndarray], device: torch.device | str = "cpu") -> "TokenBatch":
        """A batch whose only positions are each sequence's last token: where a reward model's score is read."""
        batch = cls.build(sequences, [len(sequence) - 1 for sequence in sequences], device)
        return cls(batch.input_ids, batch.positions + 1, batch.targets, batch.mask)

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> "TokenBatch":
        """A pass without response tokens in its mask: keeps a rank without samples in step with the others."""
        batch = cls.build([np.zeros(2, dtype=np.int64)], [1], device)
        return cls(batch.input_ids, batch.positions, batch.targets, torch.zeros_like(batch.mask))

    def pad(self, flat: Tensor) -> Tensor:
        """[tokens] values to [batch, time], zero outside the mask."""
        padded = torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device)
        return padded.masked_scatter(self.mask, flat)

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


def split_by_tokens(lengths: Sequence[int] | np.ndarray, tokens_per_microbatch: int) -> list[list[int]]:
    """Indices grouped into micro-batches of similar length with at most `tokens_per_microbatch` padded tokens each.

    The groups are evened out: as few as the bound allows, then of about equal padded size. A sequence longer than the
    bound gets a micro-batch of its own.
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
