"""Whole documents packed into rows, so that little of a micro-batch is padding; and the proof that none sees another.

Attention ends at a document's border: position ids begin anew there, from which transformers builds a block-diagonal
mask (Krell et al. 2021, "Efficient sequence packing without cross-contamination"). So packing changes the speed of a
step, and of its numbers only the last bits.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.plan import equal_passes, shares
from rlhf_ray.models.batching import TokenBatch, split_by_tokens

Row = list[int]  # indices of the documents in it

#: Log-probs of a document may differ so much, in nats, with what stands before it: a kernel's last bits.
LEAK_TOLERANCE = 1e-3


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


def packed_microbatches(
    members: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    ranks: int,
    tokens_per_microbatch: int,
    one_row: bool = False,
) -> list[list[list[Row]]]:
    """The micro-batches of every rank for one minibatch, each a list of rows; all ranks get the same number of them.

    Rows are as long as the longest document, which costs attention least; with `one_row` a micro-batch is a single row
    of up to `tokens_per_microbatch`, as variable-length attention kernels want it.
    """
    plans = []
    for share in shares(members, lengths, ranks):
        row_tokens = tokens_per_microbatch if one_row else max((int(lengths[i]) for i in share), default=0)
        rows = [[share[i] for i in row] for row in pack_rows([int(lengths[i]) for i in share], row_tokens)]
        if one_row:
            plans.append([[row] for row in rows])
            continue
        groups = split_by_tokens([sum(int(lengths[i]) for i in row) for row in rows], tokens_per_microbatch)
        plans.append([[rows[i] for i in group] for group in groups])
    return equal_passes(plans)


@torch.no_grad()
def check_packing(network: nn.Module, device: torch.device) -> None:
    """See that a document's log-probs do not change with the document before it in its row; every rank calls.

    Raises ConfigError for a model that lets documents see each other.
    """
    lm: Any = network.lm
    name, remedy = type(lm).__name__, "set sft.packing=false"
    if "position_ids" not in inspect.signature(lm.base_model.forward).parameters:
        raise ConfigError(f"sft.packing: {name} takes no position ids, which tell documents apart; {remedy}")
    random = np.random.default_rng(0)
    before, other, document = (random.integers(lm.config.vocab_size, size=size) for size in (7, 7, 9))

    def logprobs(first: np.ndarray) -> torch.Tensor:
        learned = [[np.zeros(len(first), dtype=bool), np.arange(len(document)) > 0]]
        return network(TokenBatch.of_documents([[first, document]], learned, device)).logprobs

    gap = float((logprobs(before) - logprobs(other)).abs().max())
    if not gap <= LEAK_TOLERANCE:
        raise ConfigError(
            f"sft.packing: in {name} with model.attn_implementation={lm.config._attn_implementation} the document "
            f"before changes a document's log-probs by up to {gap:.3g} nats, so they are not kept apart; {remedy}"
        )
