"""Whole documents packed into rows, so that little of a micro-batch is padding; and the proof that none sees another.

Attention ends at a document's border: position ids begin anew there, from which transformers builds a block-diagonal
mask (Krell et al. 2021, "Efficient sequence packing without cross-contamination"). So packing changes the speed of a
step, and of its numbers only the last bits.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from rlhf_ray.config.common import LearnerSection, ModelSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.plan import equal_passes, microbatches, shares
from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.models.networks import PolicyOutput

Row = list[int]  # indices of the documents in it

#: Log-probs and scores of a document may differ so much with what stands before it: a kernel's last bits.
LEAK_TOLERANCE = 1e-3


class Pass(NamedTuple):
    """One micro-batch: its items, and the rows in which their documents lie; None where each has a row of its own.

    Document number k * len(items) + i is the k-th one of items[i]: of pairs, all chosen ones come first.
    """

    items: list[int]
    rows: list[Row] | None


@dataclass(frozen=True)
class Passes:
    """How the items of a step (demonstrations; pairs, of two documents each) become the micro-batches of each rank."""

    group: LearnerGroup
    tokens_per_microbatch: int
    packing: bool
    one_row: bool = False  # a micro-batch is a single row, as variable-length attention kernels want it

    @classmethod
    def of(cls, model: ModelSection, learner: LearnerSection, packing: bool, group: LearnerGroup) -> "Passes":
        """As a run's configuration asks for them."""
        return cls(group, learner.tokens_per_microbatch, packing, model.attn_implementation == "flash_attention_2")

    def plan(self, items: np.ndarray, lengths: np.ndarray) -> list[Pass]:
        """This rank's micro-batches of `items`; all ranks get the same number of them, some perhaps without items.

        `lengths` is [all items, documents of each], in tokens.
        """
        ranks, budget = self.group.size, self.tokens_per_microbatch
        if not self.packing:  # every document is padded to the longest
            padded = lengths.max(1) * lengths.shape[1]
            return [Pass(batch, None) for batch in microbatches(items, padded, ranks, budget)[self.group.rank]]
        plans = [pack(share, lengths, budget, self.one_row) for share in shares(items, lengths.sum(1), ranks)]
        return equal_passes(plans, Pass([], None))[self.group.rank]


def pack(items: list[int], lengths: np.ndarray, tokens_per_microbatch: int, one_row: bool = False) -> list[Pass]:
    """`items` in about as few micro-batches as their documents fill, each of at most `tokens_per_microbatch`.

    Long and short ones are dealt out evenly, so that the short ones fill the gaps. An item that is larger than a
    micro-batch gets one of its own.
    """
    totals = lengths.sum(1)
    count = -(-int(totals[items].sum()) // tokens_per_microbatch)
    while items:
        passes = [_packed(dealt, lengths, one_row) for dealt in shares(items, totals, count) if dealt]
        if all(len(made.items) == 1 or _tokens(made, lengths) <= tokens_per_microbatch for made in passes):
            return passes
        count = max(count + 1, count * 21 // 20)
    return []


def _packed(items: list[int], lengths: np.ndarray, one_row: bool) -> Pass:
    """Rows as long as the longest document, which costs attention least; or a single one."""
    documents = lengths[items].T.reshape(-1)
    return Pass(items, [list(range(len(documents)))] if one_row else pack_rows(documents, int(documents.max())))


def _tokens(made: Pass, lengths: np.ndarray) -> int:
    """Tokens of a packed micro-batch, with its padding."""
    assert made.rows is not None
    documents = lengths[made.items].T.reshape(-1)
    return len(made.rows) * max(int(documents[row].sum()) for row in made.rows)


def pack_rows(lengths: Sequence[int] | np.ndarray, row_tokens: int) -> list[Row]:
    """Documents of these lengths in rows of at most `row_tokens`: longest first, each into the first row with room.

    First-fit decreasing needs at most 11/9 of the fewest possible rows (Johnson 1973). A longer document gets a row of
    its own.
    """
    rows: list[Row] = []
    room = np.zeros(len(lengths), dtype=np.int64)  # in each row begun
    for index in sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i)):
        fitting = np.flatnonzero(room[: len(rows)] >= lengths[index])
        if len(fitting):
            rows[fitting[0]].append(index)
            room[fitting[0]] -= lengths[index]
        else:
            room[len(rows)] = row_tokens - lengths[index]
            rows.append([index])
    return rows


@torch.no_grad()
def check_packing(network: nn.Module, device: torch.device, key: str) -> None:
    """See that what `network` says of a document does not change with the one before it in its row; every rank calls.

    Raises ConfigError, which names the option `key`, for a model that lets documents see each other.
    """
    model: Any = getattr(network, "lm", None) or network.model
    name, remedy = type(model).__name__, f"set {key}=false"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ConfigError(f"{key}: {name} takes no position ids, which tell documents apart; {remedy}")
    random = np.random.default_rng(0)
    before, other, document = (random.integers(model.config.vocab_size, size=size) for size in (7, 7, 9))

    def said(first: np.ndarray) -> torch.Tensor:
        output = network(TokenBatch.build([first, document], [len(first), 1], device, rows=[[0, 1]]))
        return output.logprobs if isinstance(output, PolicyOutput) else output

    gap = float((said(before) - said(other)).abs().max())
    if not gap <= LEAK_TOLERANCE:
        raise ConfigError(
            f"{key}: in {name} with model.attn_implementation={model.config._attn_implementation} the document before "
            f"changes what is said of a document by up to {gap:.3g}, so they are not kept apart; {remedy}"
        )
