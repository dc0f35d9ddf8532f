"""Sums, means and moments over the real tokens of a padded batch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask` is set, both `[batch, time]`; a 0-d tensor of x's dtype."""
    return torch.where(mask, x, 0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` is set, both `[batch, time]`; a 0-d tensor, 0 for an empty mask."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of some values. The moments of parts add up to those of the whole.

    The sums are float64, in which the square of a float32 is exact: the variance keeps its digits as long as the mean
    is within about 1e6 standard deviations of zero.
    """

    count: float = 0.0
    total: float = 0.0
    total_squares: float = 0.0

    @classmethod
    def of(cls, x: Tensor, mask: Tensor) -> "Moments":
        """Moments of `x` where `mask` is set, both `[batch, time]`."""
        x = torch.where(mask, x.detach(), 0).double()
        return cls(*torch.stack([mask.sum().double(), x.sum(), x.square().sum()]).tolist())

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.total_squares + other.total_squares)

    @property
    def mean(self) -> float:
        """Arithmetic mean, 0 where there is nothing."""
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation, 0 where there is nothing."""
        # Rounding can leave a difference just below zero where all values are equal.
        return math.sqrt(max(self.total_squares / self.count - self.mean**2, 0.0)) if self.count else 0.0
