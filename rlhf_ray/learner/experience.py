"""What the PPO objective trains on: an index of all samples in small columns, this rank's rows with their tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.models.batching import TokenBatch


@dataclass(frozen=True)
class RolloutIndex:
    """All samples of an iteration in canonical order (prompt_id, sample_index), as known to the driver; each [samples].

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

    members: list[int]  # its samples' places in the index; none in a pass without samples
    batch: TokenBatch
    behaviour: Tensor  # the generator's raw log-probs
    reference: Tensor | None  # the reference's log-probs; None without a reference, and in a pass without samples
    scores: Tensor  # composed rewards, [batch]
    old_logprobs: Tensor = field(init=False)
    old_values: Tensor = field(init=False)
    advantages: Tensor = field(init=False)
    returns: Tensor = field(init=False)

    @property
    def mask(self) -> Tensor:
        return self.batch.mask


def load_micros(plan: Sequence[Sequence[int]], index: RolloutIndex, fetch: Fetch, device: torch.device) -> list[Micro]:
    """The micro-batches of one minibatch on this rank, tokens fetched from the Arrow batches that hold them."""
    columns: dict[int, _Columns] = {}

    def at(member: int) -> tuple[_Columns, int]:
        """The columns of the batch that holds sample `member`, and its row there."""
        number = int(index.batch[member])
        if number not in columns:
            columns[number] = _Columns(*fetch(number))
        return columns[number], int(index.row[member])

    return [_load(members, index, at, device) if len(members) else _empty(device) for members in plan]


class _Columns:
    """The token columns of one Arrow batch."""

    def __init__(self, samples: pa.Table, references: pa.Table | None) -> None:
        self.prompt, self.response = Ragged(samples["prompt_tokens"]), Ragged(samples["response_tokens"])
        self.behaviour = Ragged(samples["response_logprobs"])
        self.reference = Ragged(references["reference_logprobs"]) if references is not None else None


def _load(
    members: Sequence[int], index: RolloutIndex, at: Callable[[int], tuple[_Columns, int]], device: torch.device
) -> Micro:
    places = [at(member) for member in members]
    batch = TokenBatch.build(
        [np.concatenate([columns.prompt[row], columns.response[row]]) for columns, row in places],
        [int(index.prompt_length[member]) for member in members],
        device,
    )
    reference = [columns.reference[row] for columns, row in places if columns.reference is not None]
    return Micro(
        [int(member) for member in members],
        batch,
        behaviour=batch.rows([columns.behaviour[row] for columns, row in places]),
        reference=batch.rows(reference) if reference else None,
        scores=torch.tensor([index.reward[m] for m in members], dtype=torch.float32, device=device),
    )


def _empty(device: torch.device) -> Micro:
    batch = TokenBatch.empty(device)
    return Micro([], batch, torch.zeros(batch.mask.shape, device=device), None, torch.zeros(1, device=device))
