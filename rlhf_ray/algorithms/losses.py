"""The losses over tokens, as sums over the real ones, with what is worth watching beside them.

Every field of a result is a 0-d tensor; `loss_sum` alone carries a gradient.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import MAX_LOG_RATIO, kl_estimate
from rlhf_ray.algorithms.masked import masked_sum


@dataclass(frozen=True)
class Clip:
    """Where a ratio stops to count: below 1 - low and above 1 + high, and for bad tokens above `dual` at any rate."""

    low: float
    high: float  # more than `low` lets unlikely tokens rise faster (clip-higher; DAPO, Yu et al. 2025, sec. 3.1)
    dual: float | None = None


@dataclass(frozen=True)
class PolicyLoss:
    loss_sum: Tensor
    clipped_tokens: Tensor  # tokens whose gradient the clip removed
    ratio_sum: Tensor
    ratio_max: Tensor
    approx_kl_sum: Tensor  # KL(old || new) by k3, in nats


@dataclass(frozen=True)
class ValueLoss:
    loss_sum: Tensor
    clipped_tokens: Tensor  # tokens whose gradient the clip removed
    error_sum_squares: Tensor  # of the unclipped values


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip,
    *,
    weights: Tensor | None = None,
    ratio: Literal["token", "sequence"] = "token",
) -> PolicyLoss:
    """The clipped surrogate, negated (Schulman et al. 2017, eq. 7); all tensors `[batch, time]`.

        loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A),    ratio = exp(logprobs - old_logprobs)
        loss = min(loss, -dual * A) where A < 0 and there is a dual clip (Ye et al. 2020)

    `weights` multiply each token's loss (default: 1). The ratio of a whole `sequence` is the geometric mean of its
    tokens' (`sequence_log_ratio`). The gradient flows through `logprobs` only.
    """
    logprobs = torch.where(mask, logprobs, 0)
    old_logprobs = torch.where(mask, old_logprobs, 0).detach()
    advantages = torch.where(mask, advantages, 0).detach()
    log_ratio = logprobs - old_logprobs
    if ratio == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, mask)
    ratios = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratios
    clipped = -advantages * ratios.clamp(1 - clip.low, 1 + clip.high)
    losses, removed = torch.maximum(unclipped, clipped), clipped > unclipped
    if clip.dual is not None:
        bound = torch.where(advantages < 0, -clip.dual * advantages, torch.inf)
        losses, removed = torch.minimum(losses, bound), removed | (losses > bound)
    real_ratios = torch.where(mask, ratios.detach(), 0)
    return PolicyLoss(
        loss_sum=(losses if weights is None else losses * torch.where(mask, weights, 0)).sum(),
        clipped_tokens=removed.sum(),
        ratio_sum=real_ratios.sum(),
        ratio_max=real_ratios.amax() if real_ratios.numel() else real_ratios.sum(),
        approx_kl_sum=kl_estimate(old_logprobs, logprobs.detach(), "k3").sum(),
    )


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The mean log ratio of each response at all of its tokens, `[batch, time]` (GSPO, Zheng et al. 2025, eq. 7).

    Each token carries the gradient of its own log-prob, as in GSPO-token (eq. 14); with one advantage for all tokens
    the summed gradient is GSPO's. `log_ratio` is `[batch, time]` and 0 at padding.
    """
    own = log_ratio - log_ratio.detach()
    mean = log_ratio.detach().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, mean + own, 0)


@torch.no_grad()
def truncated_importance(logprobs: Tensor, generator_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(pi_learner / pi_generator, cap) of each token, `[batch, time]`, 1 at padding (Yao et al. 2025, "TIS").

    Both log-probs are those of the weights that sampled, as the learner and as the generator compute them: the weights
    undo the bias of training on samples of an engine that computes a little differently.
    """
    log_ratio = torch.where(mask, logprobs - generator_logprobs, 0)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, value_clip_range: float | None
) -> ValueLoss:
    """Half the squared error, with the value's move clipped as in OpenAI Baselines' ppo2; all tensors `[batch, time]`.

        loss = 0.5 * max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)

    Without a `value_clip_range` it is the plain half squared error. The gradient flows through `values` only.
    """
    values = torch.where(mask, values, 0)
    old_values = torch.where(mask, old_values, 0).detach()
    returns = torch.where(mask, returns, 0).detach()
    errors = (values - returns).square()
    worst = errors
    if value_clip_range is not None:
        moved = values.clamp(old_values - value_clip_range, old_values + value_clip_range)
        worst = torch.maximum(errors, (moved - returns).square())
    return ValueLoss(
        loss_sum=0.5 * worst.sum(),
        clipped_tokens=(worst > errors).sum(),
        error_sum_squares=errors.detach().sum(),
    )


def sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the real tokens; both arguments `[batch, time]`."""
    return -masked_sum(logprobs, mask)
