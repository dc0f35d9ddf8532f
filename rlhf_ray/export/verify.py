"""Exported against source: the log-probs (or scores) that both give to the same real token sequences.

The source is run by transformers, one unpadded sequence at a time; graphs are run in padded batches of several sizes,
so that a graph which fixed a shape, or lets padding leak into a sequence, shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_ray.errors import AuditError
from rlhf_ray.export.source import Kind

#: One float64 array per sequence: log-probs of tokens 2, 3, ... (policy), or the one score (reward model).
Outputs = list[np.ndarray]
#: (input_ids, attention_mask), both int64 [batch, time] -> float32 logits [batch, time, vocabulary] or scores [batch].
Graph = Callable[[Tensor, Tensor], Tensor]

#: Sequences per batch of a graph; the first batch has one.
BATCH = 4


@dataclass(frozen=True)
class Gap:
    """How far an export is from its source on the same tokens, in nats (policy) or in score units (reward model)."""

    largest: float
    mean: float  # of the absolute differences
    shift: float  # mean of export - source: exp(-shift) is the ratio of the two perplexities
    values: int  # how many tokens (policy) or sequences (reward model)


def compare(source: Outputs, exported: Outputs) -> Gap:
    """The gap between two models' outputs for the same sequences. NaN in any of them makes the gap NaN."""
    difference = np.concatenate([b - a for a, b in zip(source, exported, strict=True)])
    size = np.abs(difference)
    return Gap(float(size.max()), float(size.mean()), float(difference.mean()), len(difference))


def check(name: str, gap: Gap, tolerance: float | None) -> None:
    """Raise AuditError where the largest gap is past `tolerance` (None: any finite gap will do) or not a number."""
    if not math.isfinite(gap.largest):
        raise AuditError(
            f"export {name}: the exported model's answers are not finite numbers. Nothing was written; export another "
            "format."
        )
    if tolerance is not None and gap.largest > tolerance:
        raise AuditError(
            f"export {name}: the exported model is not its source: their outputs differ by up to {gap.largest:.3g} "
            f"(mean {gap.mean:.3g} over {gap.values} values), the tolerance is {tolerance:g}. Nothing was written."
        )


@torch.no_grad()
def model_outputs(model: PreTrainedModel, kind: Kind, sequences: Sequence[np.ndarray]) -> Outputs:
    """The outputs of a transformers model, one plain forward pass per sequence."""
    outputs = []
    for sequence in sequences:
        ids = torch.from_numpy(sequence)[None]
        if kind == "policy":
            outputs.append(_logprobs(model(input_ids=ids, use_cache=False).logits[0], ids[0]))
        else:
            states = model.base_model(input_ids=ids, use_cache=False)[0]
            outputs.append(model.score(states[:, -1]).double().numpy()[0])
    return outputs


@torch.no_grad()
def graph_outputs(graph: Graph, kind: Kind, sequences: Sequence[np.ndarray]) -> Outputs:
    """The outputs of a graph, run on right-padded batches of one and of up to `BATCH` sequences."""
    outputs: Outputs = []
    starts = [0, *range(1, len(sequences), BATCH)]
    for start, end in zip(starts, [*starts[1:], len(sequences)], strict=True):
        batch = sequences[start:end]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)] = torch.from_numpy(sequence)
            mask[row, : len(sequence)] = 1
        answer = graph(ids, mask)
        for row, sequence in enumerate(batch):
            if kind == "policy":
                outputs.append(_logprobs(answer[row, : len(sequence)], ids[row, : len(sequence)]))
            else:
                outputs.append(answer[row : row + 1].double().numpy())
    return outputs


def _logprobs(logits: Tensor, ids: Tensor) -> np.ndarray:
    """Float64 [tokens - 1]: log-prob of each token after the first under float32 `logits` [tokens, vocabulary]."""
    chosen = logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return chosen.double().numpy()
