"""The losses of one iteration's micro-batches, divided by what their minibatch holds, and what to report of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algorithms.averaging import token_weights, units
from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.algorithms.losses import Clip, policy_loss, truncated_importance, value_loss
from rlhf_ray.config.algorithm import Average, loss_average
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.learner.experience import Micro
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.models.networks import PolicyOutput


@dataclass(frozen=True)
class Minibatch:
    """The samples of one optimiser step: this rank's micro-batches, and what all ranks have together."""

    micros: list[Micro]
    tokens: int  # response tokens, at least 1
    units: int  # what the policy's loss is a mean over (see `algorithms.averaging`), at least 1

    @classmethod
    def of(cls, micros: list[Micro], lengths: np.ndarray, average: Average) -> "Minibatch":
        """lengths: response tokens of all ranks' samples, int [samples]."""
        counts = torch.from_numpy(lengths.astype(np.int64))
        return cls(micros, *(max(int(units(counts, kind)), 1) for kind in ("token", average)))


class PPOLoss:
    """The losses under one configuration; it remembers its numbers until `metrics` is asked."""

    def __init__(self, config: PPOConfig, kl_coef: float) -> None:
        ppo = config.ppo
        self._config, self._kl_coef = config, kl_coef
        self._clip = Clip(ppo.clip_range, ppo.clip_range_high or ppo.clip_range, ppo.dual_clip)
        self._average, self._longest = loss_average(config), config.generation.max_new_tokens
        self._sums = Sums()

    def value(self, values: Tensor, micro: Micro, minibatch: Minibatch) -> Tensor:
        """Of a critic's `values` [batch, time], as a share of the minibatch's mean over tokens."""
        loss = value_loss(values, micro.old_values, micro.returns, micro.mask, self._config.ppo.value_clip_range)
        self._sums.add(value_loss=loss.loss_sum, value_clipped=loss.clipped_tokens, value_tokens=micro.mask.sum())
        return loss.loss_sum / minibatch.tokens

    def policy(self, output: PolicyOutput, micro: Micro, minibatch: Minibatch, moved: Sums) -> Tensor:
        """Surrogate, entropy bonus and KL penalty, as a share of the minibatch's mean.

        Adds the sampled KL(old || new) in nats to `moved`, as `kl`.
        """
        ppo, kl, mask = self._config.ppo, self._config.kl, micro.mask
        logprobs, entropy = micro.batch.pad(output.logprobs), micro.batch.pad(output.entropy)
        weights = token_weights(mask, self._average, self._longest)
        loss = policy_loss(
            logprobs,
            micro.old_logprobs,
            micro.advantages,
            mask,
            self._clip,
            weights=weights if ppo.tis_cap is None else weights * self._importance(micro, ppo.tis_cap),
            ratio=ppo.ratio,
        )
        total = loss.loss_sum
        if ppo.entropy_coef:
            total = total - ppo.entropy_coef * (weights * entropy).sum()
        if kl.placement == "loss" and micro.reference is not None:
            penalty = kl_estimate(logprobs, micro.reference, kl.estimator, mask)
            total = total + self._kl_coef * (weights * penalty).sum()
        self._sums.add(policy_loss=loss.loss_sum, units=units(mask.sum(1), self._average), clipped=loss.clipped_tokens)
        self._sums.add(ratio=loss.ratio_sum, approx_kl=loss.approx_kl_sum, entropy=entropy.sum(), tokens=mask.sum())
        self._sums.largest(ratio_max=loss.ratio_max)
        moved.add(kl=loss.approx_kl_sum)
        return total / minibatch.units

    def _importance(self, micro: Micro, cap: float) -> Tensor:
        """Truncated importance weights `[batch, time]` of the generator's tokens."""
        weights = truncated_importance(micro.old_logprobs, micro.behaviour, micro.mask, cap)
        self._sums.add(tis=torch.where(micro.mask, weights, 0).sum(), tis_capped=((weights >= cap) & micro.mask).sum())
        return weights

    def metrics(self, group: LearnerGroup) -> dict[str, float]:
        """Means over all ranks and all passes so far."""
        sums, metrics = self._sums.over(group), {}
        if tokens := sums.get("tokens"):
            metrics = {
                "loss/policy": sums["policy_loss"] / max(sums["units"], 1),
                "policy/clip_fraction": sums["clipped"] / tokens,
                "policy/ratio_mean": sums["ratio"] / tokens,
                "policy/ratio_max": sums["ratio_max"],
                "policy/entropy": sums["entropy"] / tokens,
                "policy/approx_kl": sums["approx_kl"] / tokens,
            }
            if "tis" in sums:
                metrics["policy/tis_mean"] = sums["tis"] / tokens
                metrics["policy/tis_capped_fraction"] = sums["tis_capped"] / tokens
        if value_tokens := sums.get("value_tokens"):
            metrics["loss/value"] = sums["value_loss"] / value_tokens
            metrics["value/clip_fraction"] = sums["value_clipped"] / value_tokens
        return metrics
