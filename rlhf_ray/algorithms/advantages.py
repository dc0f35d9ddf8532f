"""From scores to advantages: per-token rewards, generalised advantage estimation, whitening."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.algorithms.masked import Moments


@torch.no_grad()
def token_rewards(scores: Tensor, mask: Tensor, kl_per_token: Tensor | None, kl_coef: float) -> Tensor:
    """Rewards `[batch, time]`: the score on the last real token, minus `kl_coef * kl_per_token` on every token.

    `scores` is `[batch]`, `mask` and `kl_per_token` are `[batch, time]`; without the latter there is no penalty.
    Padding gets 0, so a response without tokens has no place for its score.
    """
    is_last = mask & ~F.pad(mask[:, 1:], (0, 1))
    rewards = torch.where(is_last, scores[:, None], 0)
    if kl_per_token is None:
        return rewards
    return rewards - kl_coef * torch.where(mask, kl_per_token, 0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both `[batch, time]` and 0 at padding (Schulman et al. 2015, eq. 16).

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lambda * A_{t+1}            R_t = A_t + V_t

    The response ends the episode: the value after the last real token is 0. `values` are those from before the update.
    """
    rewards = torch.where(mask, rewards, 0)
    values = torch.where(mask, values, 0)
    advantages = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values
    columns = advantages.unbind(dim=1)
    for now, after in zip(columns[-2::-1], columns[:0:-1], strict=True):
        now.add_(after, alpha=gamma * gae_lambda)
    return advantages, advantages + values


@torch.no_grad()
def whiten(advantages: Tensor, mask: Tensor, moments: Moments, centre: bool = True) -> Tensor:
    """Advantages `[batch, time]` scaled to mean 0 and standard deviation 1; not `centre`d, to mean square 1.

    `moments` are those of the whole iteration, over all ranks and micro-batches. Padding gets 0. Without centring a 0
    stays exactly 0: for advantages that are differences to their own group's mean already.
    """
    mean = moments.mean if centre else 0.0
    variance = moments.std**2 + (moments.mean - mean) ** 2
    # Epsilon on the variance, not on the deviation: advantages that differ by rounding only stay near zero.
    return torch.where(mask, (advantages - mean) * (variance + 1e-8) ** -0.5, 0)
