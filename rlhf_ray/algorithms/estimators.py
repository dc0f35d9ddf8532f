"""Advantages without a critic: what a response's return is worth beside the other responses to the same prompt.

A registry of pure functions (returns, groups) -> advantages, all float64 [samples]; `groups` holds one integer per
sample, its prompt's. Returns are whole responses', less their KL penalty where that is part of the reward. The groups
are those of the whole iteration, wherever their samples lie, in any order.

A group whose returns are all equal says nothing, nor does a group of one: both get exactly 0. Returns that differ by
float32 rounding only count as equal, or else a division by their standard deviation would blow noise up to signal.

`ppo.advantage=gae` has a critic (`advantages.gae`), and `reinforce_pp` compares over the whole iteration, not over
groups: its advantages are the discounted sums of later token rewards, whitened (Hu et al. 2025, "REINFORCE++").
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Returns closer than this, relative to the largest of their group, are equal: 8 float32 roundings.
EQUAL = 1e-6

GroupEstimator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Groups:
    """Statistics of each sample's group, all [samples]."""

    size: Tensor  # float64
    mean: Tensor  # float64
    variance: Tensor  # float64, of the sample: divided by size - 1, and 0 for a group of one
    signal: Tensor  # bool: the group's returns differ

    @classmethod
    def of(cls, returns: Tensor, groups: Tensor) -> "Groups":
        """returns: float64 [samples]; groups: int64 [samples], any numbers."""
        numbers, place = groups.unique(return_inverse=True)
        zeros = torch.zeros(len(numbers), dtype=torch.float64)
        size = zeros.index_add(0, place, torch.ones_like(returns))
        mean = zeros.index_add(0, place, returns) / size
        squares = zeros.index_add(0, place, (returns - mean[place]).square())
        low, high = (zeros.scatter_reduce(0, place, returns, end, include_self=False) for end in ("amin", "amax"))
        signal = ~(high - low <= EQUAL * torch.maximum(high.abs(), low.abs()))  # NaN counts: it must not become 0
        return cls(*(column[place] for column in (size, mean, squares / (size - 1).clamp(min=1), signal)))


def has_signal(returns: Tensor, groups: Tensor) -> Tensor:
    """bool [samples]: the returns in the sample's group differ."""
    return Groups.of(returns, groups).signal


def centred(returns: Tensor, groups: Tensor) -> Tensor:
    """R_i - mean(R): Dr. GRPO (Liu et al. 2025), GRPO without std, REINFORCE++ with baseline (Hu et al. 2025).

    The returns 1, 0, 0, 1 give 0.5, -0.5, -0.5, 0.5.
    """
    group = Groups.of(returns, groups)
    return torch.where(group.signal, returns - group.mean, 0.0)


def grpo(returns: Tensor, groups: Tensor) -> Tensor:
    """(R_i - mean(R)) / std(R) with the sample standard deviation (Shao et al. 2024, "DeepSeekMath", sec. 4.1.2).

    The returns 1, 0, 0, 1 give 0.866, -0.866, -0.866, 0.866.
    """
    group = Groups.of(returns, groups)
    return torch.where(group.signal, (returns - group.mean) * group.variance**-0.5, 0.0)


def rloo(returns: Tensor, groups: Tensor) -> Tensor:
    """R_i less the mean of the others' returns (Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics").

    That is n / (n - 1) times the difference to the mean of all n: 1, 0, 0, 1 give 0.667, -0.667, -0.667, 0.667.
    """
    group = Groups.of(returns, groups)
    return torch.where(group.signal, (returns - group.mean) * group.size / (group.size - 1), 0.0)


#: The group estimators by their name in `ppo.advantage`.
GROUP_ESTIMATORS: dict[str, GroupEstimator] = {
    "grpo": grpo,
    "grpo_no_std": centred,
    "dr_grpo": centred,
    "rloo": rloo,
    "reinforce_pp_baseline": centred,
}
