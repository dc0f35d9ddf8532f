"""How far the policy is from its reference, and how strongly it is held back."""

import math
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from rlhf_ray.config.ppo import KLSection
from rlhf_ray.errors import ConfigError, DataError

# exp(20) is 5e8: a ratio beyond it carries no information, and its overflow would turn gradients into NaN.
MAX_LOG_RATIO = 20.0


def kl_estimate(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    estimator: Literal["k1", "k2", "k3"],
    mask: Tensor | None = None,
) -> Tensor:
    """Per-token estimate of KL(policy || reference) from the policy's own samples, `[batch, time]`, differentiable.

    Schulman 2020, "Approximating KL divergence", with l = log policy - log reference of the sampled token:

        k1 = l                    unbiased, may be negative
        k2 = l^2 / 2              biased, low variance
        k3 = exp(-l) - 1 + l      unbiased, never negative

    All arguments are `[batch, time]`. With a `mask`, padding gives 0 and passes no gradient; without one, padding
    gives whatever its contents make of it. As a loss, on average over on-policy samples, k1 has no gradient at all, k2
    that of KL(policy || reference) and k3 that of KL(reference || policy).
    """
    log_ratio = logprobs - reference_logprobs
    if mask is not None:
        log_ratio = torch.where(mask, log_ratio, 0)
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            log_ratio = log_ratio.clamp(min=-MAX_LOG_RATIO)
            return torch.expm1(-log_ratio) + log_ratio
    assert_never(estimator)


def warmed_up(coef: float, iteration: int, warmup_iterations: int) -> float:
    """The coefficient that iteration `iteration` (from 0) trains with: it rises linearly from 0, as learning rates do.

    At first the policy is its own reference; a penalty at full strength would hold back the first steps towards the
    reward on account of KL estimates that are mostly noise.
    """
    return coef * min(iteration / warmup_iterations, 1.0) if warmup_iterations else coef


@dataclass(frozen=True)
class FixedKL:
    """A coefficient that stays as configured, once warmed up."""

    coef: float
    warmup_iterations: int = 0

    def coef_at(self, iteration: int) -> float:
        """The coefficient of iteration `iteration`, counted from 0."""
        return warmed_up(self.coef, iteration, self.warmup_iterations)

    def update(self, observed_kl_per_response: float, samples: int, iteration: int) -> None:
        """Nothing to steer."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: the coefficient is configuration, not state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


@dataclass
class AdaptiveKL:
    """A coefficient steered so that the KL per response approaches `target` nats (Ziegler et al. 2019, sec. 2.2).

        e    = clip(KL / target - 1, -0.2, 0.2)
        coef = coef * (1 + e * samples / horizon)

    The paper's K_beta = 0.1 is samples / horizon here, as in its code, so that the batch size does not set the pace. It
    is at most 1: an update of more samples than the horizon would otherwise overshoot, below zero even.
    """

    coef: float
    target: float
    horizon: int
    warmup_iterations: int = 0

    def coef_at(self, iteration: int) -> float:
        """The coefficient of iteration `iteration`, counted from 0."""
        return warmed_up(self.coef, iteration, self.warmup_iterations)

    def update(self, observed_kl_per_response: float, samples: int, iteration: int) -> None:
        """Moves the coefficient after an iteration of `samples` responses with this mean KL (over tokens, in nats).

        While it warms up it is not steered: the KL says nothing about a coefficient that is not in force yet.

        Raises DataError for NaN, which would stay in the coefficient for good.
        """
        if math.isnan(observed_kl_per_response):
            raise DataError(
                f"The adaptive KL controller got NaN as the mean KL of {samples} responses. Log-probs of the policy or "
                "of the reference are not finite: check both models, or lower learner.learning_rate."
            )
        if iteration < self.warmup_iterations:
            return
        error = min(max(observed_kl_per_response / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(samples / self.horizon, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond its configuration."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.coef = float(state["coef"])


def make_kl_controller(section: KLSection) -> FixedKL | AdaptiveKL:
    """The controller that the configuration asks for; ConfigError for an adaptive one that could never move."""
    if section.controller == "fixed":
        return FixedKL(section.coef, section.warmup_iterations)
    if section.coef == 0:
        raise ConfigError(
            "kl.controller is adaptive and kl.coef is 0: the controller multiplies, so the coefficient would stay 0. "
            "Give kl.coef a positive start, or set kl.controller to fixed."
        )
    return AdaptiveKL(section.coef, section.target, section.horizon, section.warmup_iterations)
