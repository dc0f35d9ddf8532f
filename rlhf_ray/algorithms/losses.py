"""The losses of all stages, as sums over real tokens or pairs, with what is worth watching beside them.

Every field of a result is a 0-d tensor; `loss_sum` alone carries a gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.algorithms.kl import MAX_LOG_RATIO, kl_estimate
from rlhf_ray.algorithms.masked import masked_sum


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


@dataclass(frozen=True)
class PairwiseLoss:
    loss_sum: Tensor
    correct: Tensor  # pairs in which the chosen response scores higher
    margin_sum: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> PolicyLoss:
    """The clipped surrogate, negated (Schulman et al. 2017, eq. 7); all tensors `[batch, time]`.

        loss = -min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A),    ratio = exp(logprobs - old_logprobs)

    The gradient flows through `logprobs` only.
    """
    logprobs = torch.where(mask, logprobs, 0)
    old_logprobs = torch.where(mask, old_logprobs, 0).detach()
    advantages = torch.where(mask, advantages, 0).detach()
    ratio = (logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    real_ratio = torch.where(mask, ratio.detach(), 0)
    return PolicyLoss(
        loss_sum=torch.maximum(unclipped, clipped).sum(),
        clipped_tokens=(clipped > unclipped).sum(),
        ratio_sum=real_ratio.sum(),
        ratio_max=real_ratio.amax() if real_ratio.numel() else real_ratio.sum(),
        approx_kl_sum=kl_estimate(old_logprobs, logprobs.detach(), "k3").sum(),
    )


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


def pairwise_loss(chosen: Tensor, rejected: Tensor) -> PairwiseLoss:
    """Bradley-Terry negative log-likelihood, both arguments `[pairs]` (Christiano et al. 2017; Ouyang et al. 2022).

    loss = -log sigmoid(chosen - rejected)
    """
    margins = chosen - rejected
    return PairwiseLoss(
        loss_sum=-F.logsigmoid(margins).sum(),
        correct=(margins > 0).sum(),
        margin_sum=margins.detach().sum(),
    )
