"""What the PPO objective trains on: an index of all samples in small columns, and this rank's rows with their tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.models.batching import TokenBatch


@dataclass(frozen=True)
class RolloutIndex:
    """All samples of an iteration in canonical order (prompt_id, sample_index), as the driver knows them; arrays [samples].

    `batch` and `row` say where a sample's tokens lie: row `row` of Arrow batch `batch`.
    """

    prompt_id: np.ndarray
    sample_index: np.ndarray
    batch: np.ndarray
    row: np.ndarray
    prompt_length: np.ndarray  # tokens
    response_length: np.ndarray  # tokens
    reward: np.ndarray  # float64, the composed reward

    def __len__(self) -> int:
        return len(self.prompt_id)

    @property
    def lengths(self) -> np.ndarray:
        """Prompt + response tokens, [samples]."""
        return self.prompt_length + self.response_length


#: (Arrow batch number) -> (its samples, the reference's answer for the same rows or None)
Fetch = Callable[[int], tuple[pa.Table, pa.Table | None]]


@dataclass
class Micro:
    """One micro-batch of samples; [batch, time] tensors over response tokens, filled in as PPO proceeds."""

    batch: TokenBatch
    behaviour: Tensor  # the generator's raw log-probs
    reference: Tensor | None  # the reference's log-probs
    scores: Tensor  # composed rewards, [batch]
    old_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        return self.batch.mask


def load_micros(plan: Sequence[Sequence[int]], index: RolloutIndex, fetch: Fetch, device: torch.device) -> list[Micro]:
    """The micro-batches of one minibatch on this rank, tokens fetched from the Arrow batches that hold them."""
    return [_load(members, index, fetch, device) if len(members) else _empty(device) for members in plan]


def _load(members: Sequence[int], index: RolloutIndex, fetch: Fetch, device: torch.device) -> Micro:
    sequences, behaviour, reference = [], [], []
    for member in members:
        samples, references = fetch(int(index.batch[member]))
        row = int(index.row[member])
        prompt, response = (samples[name][row].values.to_numpy() for name in ("prompt_tokens", "response_tokens"))
        sequences.append(np.concatenate([prompt, response]))
        behaviour.append(samples["response_logprobs"][row].values.to_numpy())
        if references is not None:
            reference.append(references["reference_logprobs"][row].values.to_numpy())
    batch = TokenBatch.build(sequences, [int(index.prompt_length[m]) for m in members], device)
    return Micro(
        batch,
        behaviour=batch.rows(behaviour),
        reference=batch.rows(reference) if reference else None,
        scores=torch.tensor([index.reward[m] for m in members], dtype=torch.float32, device=device),
    )


def _empty(device: torch.device) -> Micro:
    batch = TokenBatch.empty(device)
    nothing = torch.zeros(batch.mask.shape, device=device)
    return Micro(batch, nothing, nothing, torch.zeros(1, device=device))
