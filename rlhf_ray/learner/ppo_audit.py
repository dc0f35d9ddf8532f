"""The audit's second proof, on one learner rank: the generator's log-probs against the learner's, token by token."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.learner.experience import Micro
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.weights.audit import LogprobGap


class GapMeter:
    """Measures the gap of an iteration, on the first pass over each sample at the weights that generated it."""

    def __init__(self, group: LearnerGroup, check: Callable[[LogprobGap, int], None], iteration: int) -> None:
        """`check(gap, iteration)` raises past the tolerance."""
        self._group, self._check, self._iteration = group, check, iteration
        self._sums = Sums()
        self.gap: LogprobGap | None = None  # over all ranks, once there is nothing more to measure

    @torch.no_grad()
    def add(self, micro: Micro, raw_logprobs: Tensor) -> None:
        """Take in the learner's own log-probs at temperature 1, `[batch, time]`."""
        difference = torch.where(micro.mask, micro.behaviour - raw_logprobs, 0)
        gap = difference.abs().nan_to_num(torch.inf, torch.inf)
        self._sums.add(gap=gap.sum(), bias=difference.sum(), tokens=micro.mask.sum())
        self._sums.largest(largest=gap.amax())

    def close(self) -> None:
        """Merge the ranks' gaps; past the tolerance every rank raises, before the policy has moved."""
        total = self._sums.over(self._group)
        tokens = max(total["tokens"], 1.0)
        self.gap = LogprobGap(total["gap"] / tokens, total["largest"], total["bias"] / tokens, int(total["tokens"]))
        self._check(self.gap, self._iteration)
