"""Does the generator sample from the learner's weights? The comparisons, as pure functions.

Digests show that the bytes arrived; the gap between the generator's and the learner's log-probs of the same tokens
shows that the engine computes with them. Each sees what the other cannot: a stale tensor after a small step hides in
the gap's noise, a stale prepacked copy has no digest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.errors import AuditError

#: (mean, max) of |generator - learner| per token, in nats, by the coarser of the two dtypes. float32: 10 to 100 times
#: what a right sync shows (1e-6 on average, some 1e-5 at most). bfloat16 and float16: 8 and 11 bits of precision,
#: over some layers.
_TOLERANCES = {"float32": (1e-4, 1e-2), "float16": (1e-2, 0.5), "bfloat16": (5e-2, 2.0)}


def compare_receipts(sent: Mapping[str, str], loaded: Mapping[str, str]) -> list[str]:
    """What differs between the tensors sent and those loaded ({name: digest} each); empty when nothing does."""
    differing = [name for name, digest in sent.items() if name in loaded and loaded[name] != digest]
    findings = [
        ("not loaded", [name for name in sent if name not in loaded]),
        ("loaded but not sent", [name for name in loaded if name not in sent]),
        ("loaded with other bytes", differing),
    ]
    return [f"{len(names)} {what}: {_listed(names)}" for what, names in findings if names]


def _listed(names: list[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass(frozen=True)
class Tolerance:
    """Largest mean and maximum gap, in nats, of a sync that is right."""

    mean: float
    max: float


def tolerances(
    engine_dtype: str, learner_dtype: str, *, mean: float | None = None, max: float | None = None
) -> Tolerance:
    """Tolerance for a pair of dtypes, the coarser one deciding; `mean` and `max` from the configuration come first."""
    default_mean, default_max = np.max([_TOLERANCES[engine_dtype], _TOLERANCES[learner_dtype]], axis=0).tolist()
    return Tolerance(default_mean if mean is None else mean, default_max if max is None else max)


@dataclass(frozen=True)
class LogprobGap:
    """|generator - learner| log-prob over `tokens` tokens, in nats; `bias` is the mean of generator - learner."""

    mean: float
    max: float
    bias: float
    tokens: int

    @classmethod
    def of(
        cls, generator_logprobs: np.ndarray, learner_logprobs: np.ndarray, mask: np.ndarray | None = None
    ) -> "LogprobGap":
        """Gap of two arrays of one shape, where `mask` is true (everywhere without it). NaN counts as infinite."""
        difference = np.asarray(generator_logprobs, np.float64) - np.asarray(learner_logprobs, np.float64)
        if mask is not None:
            difference = difference[np.asarray(mask, bool)]
        if not difference.size:
            return cls(0.0, 0.0, 0.0, 0)
        difference = np.nan_to_num(difference, nan=np.inf)
        size = np.abs(difference)
        return cls(float(size.mean()), float(size.max()), float(difference.mean()), int(size.size))

    def within(self, tolerance: Tolerance) -> bool:
        return self.mean <= tolerance.mean and self.max <= tolerance.max


def diagnose(
    gap: LogprobGap,
    tolerance: Tolerance,
    *,
    learner_version: int,
    generator_versions: set[int],
    digests_match: bool,
    raw_logprobs: bool = True,
    previous: LogprobGap | None = None,
) -> str:
    """Why a gap is past its tolerance, as a sentence for the error; the likeliest cause that the evidence supports.

    Args:
        generator_versions: policy versions stamped on the samples compared.
        digests_match: the last sync's receipts agreed.
        raw_logprobs: both sides are at temperature 1, before top-k and top-p.
        previous: the gap between the generator's log-probs and those of the learner's weights one version before.
    """
    measured = (
        f"The generator's log-probs differ from the learner's by {gap.mean:.2g} nats on average and "
        f"{gap.max:.2g} at most over {gap.tokens} tokens (allowed: {tolerance.mean:.2g} and {tolerance.max:.2g}). "
    )
    stale = sorted(generator_versions - {learner_version})
    if stale:
        cause = f"Stale version: samples of version {', '.join(map(str, stale))} were compared with {learner_version}."
    elif not digests_match:
        cause = "Failed sync: the engine did not load the tensors that the learner sent."
    elif not raw_logprobs:
        cause = "Truncated sampling: one side's log-probs are after temperature, top-k or top-p. Compare raw ones."
    elif previous is not None and previous.within(tolerance):
        cause = (
            "Stale copy: the engine computes with the weights of the version before, although it received the new ones."
        )
    elif gap.max == np.inf:
        cause = "Not finite: a log-prob is NaN or infinite. Check the weights for NaN and the learning rate."
    elif gap.mean <= tolerance.mean or (gap.mean <= 10 * tolerance.mean and abs(gap.bias) <= gap.mean / 4):
        cause = (
            "Numeric noise, more than expected of the dtypes: the differences have no direction. Use float32 on both "
            "sides, or set sync.audit_mean_tolerance and sync.audit_max_tolerance."
        )
    else:
        cause = (
            "The engine received the right bytes and computes something else: a stale prepacked copy, a different "
            "model configuration (rope, dtype, attention), or sampled tokens that are not those scored."
        )
    return measured + cause


def check_gap(section: SyncSection, engine_dtype: str, learner_dtype: str) -> Callable[[LogprobGap, int], None]:
    """A check of a gap measured on samples of the learner's own version, after receipts that agreed.

    Called with the gap and the version; raises AuditError with the diagnosis when the gap is past the tolerance.
    """
    tolerance = tolerances(
        engine_dtype, learner_dtype, mean=section.audit_mean_tolerance, max=section.audit_max_tolerance
    )

    def check(gap: LogprobGap, version: int) -> None:
        if not gap.within(tolerance):
            cause = diagnose(gap, tolerance, learner_version=version, generator_versions={version}, digests_match=True)
            raise AuditError(f"The audit of weights version {version} failed. {cause}")

    return check
