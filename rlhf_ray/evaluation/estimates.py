"""Numbers with their uncertainty: 95 % confidence intervals of means, ratios, and win rates."""

import math
from dataclasses import dataclass

import numpy as np

#: The 97.5 % quantile of the normal distribution: intervals hold the truth 19 times of 20.
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % confidence interval (None where there is none), and the number of observations behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None

    @classmethod
    def mean(cls, values: np.ndarray) -> "Estimate | None":
        """Mean of float [observations], NaN left out, with the normal interval; None when nothing is left."""
        present = np.asarray(values, dtype=np.float64)
        present = present[~np.isnan(present)]
        if not present.size:
            return None
        return cls.around(float(present.mean()), _standard_error(present), present.size)

    @classmethod
    def ratio(cls, numerators: np.ndarray, denominators: np.ndarray) -> "Estimate | None":
        """sum(numerators) / sum(denominators), both float [observations], e.g. nats and tokens of each response.

        The error is that of the linearised ratio (Cochran 1977, eq. 2.46): tokens of one response are not independent,
        responses are. None without observations or with a zero sum of denominators.
        """
        total = float(denominators.sum())
        if not total:
            return None
        value = float(numerators.sum()) / total
        residuals = (numerators - value * denominators) / (total / len(denominators))
        return cls.around(value, _standard_error(residuals), len(denominators))

    @classmethod
    def around(cls, value: float, error: float | None, count: int | None = None) -> "Estimate":
        """`value` with its standard error; None: unknown."""
        if error is None:
            return cls(value, count=count)
        return cls(value, value - Z95 * error, value + Z95 * error, count)

    def exp(self) -> "Estimate":
        """exp of the value and of the ends of its interval: a mean of nats as a perplexity."""
        low, high = (None if end is None else math.exp(end) for end in (self.low, self.high))
        return Estimate(math.exp(self.value), low, high, self.count)


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean of float [observations]; None for a single one, which says nothing about its spread."""
    return float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else None


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion `share` of `count` trials (Wilson 1927).

    Unlike the normal interval it stays inside [0, 1] and is right for few trials and for shares near 0 and 1.
    """
    centre = share + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def share_of(flags: np.ndarray) -> Estimate | None:
    """The share of True in bool [trials], with Wilson's interval; None without trials."""
    if not flags.size:
        return None
    share = float(flags.mean())
    return Estimate(share, *wilson(share, flags.size), flags.size)


@dataclass(frozen=True)
class WinRate:
    """How often one model's answer beat another's to the same prompt; a tie counts half."""

    wins: int
    ties: int
    losses: int
    missing: int = 0  # prompts without a comparison: a reward or a judgement failed

    @classmethod
    def of(cls, gain: np.ndarray) -> "WinRate":
        """gain: float [prompts], positive where the first answer is the better one, 0 for a tie, NaN for unknown."""
        known = gain[~np.isnan(gain)]
        wins, losses = int((known > 0).sum()), int((known < 0).sum())
        return cls(wins, known.size - wins - losses, losses, gain.size - known.size)

    @property
    def count(self) -> int:
        """Comparisons made."""
        return self.wins + self.ties + self.losses

    @property
    def estimate(self) -> Estimate | None:
        """(wins + ties / 2) / comparisons with Wilson's interval; None without comparisons.

        Halves vary less than wins and losses do, so that with ties the interval is wider than it need be, never
        narrower.
        """
        if not self.count:
            return None
        share = (self.wins + self.ties / 2) / self.count
        return Estimate(share, *wilson(share, self.count), self.count)
