"""Which sample goes into which optimiser step, rank and micro-batch: a pure function of lengths and seed.

Every rank computes the whole plan from the samples' lengths, so no rank has to be told, and all ranks run the same
number of micro-batches (a sharded forward pass is a collective call). The minibatches do not depend on the number of
ranks, and losses are divided by their global token counts, so neither do the gradients.
"""

import heapq
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rlhf_ray.models.batching import split_by_tokens

Item = TypeVar("Item")
Microbatches = list[list[int]]  # sample indices; an empty list is a pass without samples


def minibatches(samples: int, samples_per_minibatch: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Random minibatches of an iteration's samples, drawn once and revisited by every epoch in a new order."""
    order = np.random.default_rng([*seed, 0]).permutation(samples)
    return [np.sort(order[start : start + samples_per_minibatch]) for start in range(0, samples, samples_per_minibatch)]


def epoch_order(count: int, epoch: int, seed: Sequence[int]) -> np.ndarray:
    """The order in which epoch `epoch` visits `count` minibatches."""
    return np.random.default_rng([*seed, 1, epoch]).permutation(count)


def shares(members: Sequence[int] | np.ndarray, lengths: Sequence[int] | np.ndarray, ranks: int) -> list[list[int]]:
    """`members` split over ranks, balanced by tokens: longest first, each to the rank with the fewest tokens so far."""
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]  # a heap
    for index in sorted((int(m) for m in members), key=lambda i: (-int(lengths[i]), i)):
        load, rank = loads[0]
        parts[rank].append(index)
        heapq.heapreplace(loads, (load + int(lengths[index]), rank))
    return parts


def microbatches(
    members: Sequence[int] | np.ndarray, lengths: Sequence[int] | np.ndarray, ranks: int, tokens_per_microbatch: int
) -> list[Microbatches]:
    """The micro-batches of every rank for one minibatch; all ranks get the same number of them."""
    plans = []
    for share in shares(members, lengths, ranks):
        groups = split_by_tokens([lengths[i] for i in share], tokens_per_microbatch)
        plans.append([[share[i] for i in group] for group in groups])
    return equal_passes(plans, [])


def equal_passes(plans: list[list[Item]], empty: Item) -> list[list[Item]]:
    """Every rank's micro-batches, with `empty` ones behind those of ranks that have fewer."""
    passes = max(len(plan) for plan in plans)
    return [plan + [empty] * (passes - len(plan)) for plan in plans]
