"""An iteration's rollouts as numbers for the trackers."""

import numpy as np

from rlhf_ray.rewards.compose import Composed
from rlhf_ray.trainers.rollouts import Rollouts


def describe_rollouts(rollouts: Rollouts, composed: Composed) -> dict[str, float]:
    """Rewards, components, lengths and phases of an iteration's rollouts, as metrics.

    Sums go in canonical order: their last bits must not depend on which batch came first.
    """
    order = rollouts.canonical_order()
    kept, lengths = composed.total[order][composed.keep[order]], rollouts.column("response_length")
    metrics: dict[str, float] = {
        "reward/mean": float(kept.mean()),
        "reward/std": float(kept.std()),
        "reward/min": float(kept.min()),
        "reward/max": float(kept.max()),
        "reward/dropped_samples": float((~composed.keep).sum()),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated_fraction": float(rollouts.column("truncated").mean()),
    }
    for name, stats in composed.components.items():
        metrics |= {f"reward/{name}/{key}": value for key, value in stats.metrics().items()}
    return metrics | {f"seconds/{name}": seconds for name, seconds in rollouts.seconds.items()}


def throughput(rollouts: Rollouts, seconds: float) -> dict[str, float]:
    """Samples and response tokens per second of the whole iteration, and of generation alone."""
    lengths: np.ndarray = rollouts.column("response_length")
    return {
        "throughput/samples_per_s": len(lengths) / seconds,
        "throughput/response_tokens_per_s": float(lengths.sum()) / seconds,
        "throughput/generator_tokens_per_s": float(lengths.sum()) / max(rollouts.seconds["generate"], 1e-9),
    }
