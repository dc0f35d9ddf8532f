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


@dataclass(frozen=True)
class FixedKL:
    """A coefficient that stays as configured."""

    coef: float

    def update(self, observed_kl_per_response: float, samples: int) -> None:
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

    def update(self, observed_kl_per_response: float, samples: int) -> None:
        """Moves the coefficient after `samples` responses with this mean KL (summed over tokens, in nats).

        Raises DataError for NaN, which would stay in the coefficient for good.
        """
        if math.isnan(observed_kl_per_response):
            raise DataError(
                f"The adaptive KL controller got NaN as the mean KL of {samples} responses. Log-probs of the policy or "
                "of the reference are not finite: check both models, or lower learner.learning_rate."
            )
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
        return FixedKL(section.coef)
    if section.coef == 0:
        raise ConfigError(
            "kl.controller is adaptive and kl.coef is 0: the controller multiplies, so the coefficient would stay 0. "
            "Give kl.coef a positive start, or set kl.controller to fixed."
        )
    return AdaptiveKL(section.coef, section.target, section.horizon)
