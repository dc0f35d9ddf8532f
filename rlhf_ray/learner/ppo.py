"""The PPO objective on one learner rank (Schulman et al. 2017), over micro-batches of one iteration's samples.

Passes that would compute the same numbers twice are not made:
- While the policy has not moved since it sampled, the generator's log-probs are the old ones (fast mode; the audit
  below vouches for them). Otherwise one pass without gradients takes them from the learner.
- With a single minibatch, the first pass of a separate critic's update yields the old values too: GAE needs only its
  own sequence's values, so advantages follow from the update's own forward pass.
- With a value head, the same holds where the whole minibatch is one micro-batch on every rank: whitening needs them
  all.

The audit rides on the first pass over each sample at the weights that generated it, before the first optimiser step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algorithms.advantages import gae, token_rewards, whiten
from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.algorithms.losses import policy_loss, value_loss
from rlhf_ray.algorithms.masked import Moments
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.experience import Fetch, Micro, RolloutIndex, load_micros
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.plan import epoch_order, microbatches, minibatches
from rlhf_ray.learner.trainable import StepStats, Trainable
from rlhf_ray.models.networks import PolicyOutput
from rlhf_ray.weights.audit import LogprobGap

#: Means per response, measured on the old log-probs.
KL_METRICS: dict[str, Literal["k1", "k3"]] = {"kl/mean": "k1", "kl/k3": "k3"}


@dataclass(frozen=True)
class PPOIteration:
    """What the driver decides for one iteration."""

    number: int
    kl_coef: float
    policy_frozen: bool = False  # critic warm-up: leave the policy as it is


class PPOObjective:
    """Runs the PPO epochs of an iteration over a policy and, unless it carries a value head, a critic."""

    def __init__(
        self,
        policy: Trainable,
        critic: Trainable | None,
        config: PPOConfig,
        group: LearnerGroup,
        check_gap: Callable[[LogprobGap, int], None],
    ) -> None:
        self.policy, self.critic, self.config, self.group, self.check_gap = policy, critic, config, group, check_gap
        self.old_from_generator = generator_logprobs_serve(config)

    def train(self, index: RolloutIndex, fetch: Fetch, iteration: PPOIteration) -> tuple[dict[str, float], LogprobGap]:
        """All PPO epochs over the iteration's samples; global metrics and the audit's gap, the same on every rank.

        `index` describes the samples of all ranks; this rank fetches its own share.
        """
        run = _Iteration(self, index, fetch, iteration)
        run.prepare()
        run.epochs()
        return run.metrics(), run.gap


def generator_logprobs_serve(config: PPOConfig) -> bool:
    """Whether the generator's log-probs are the old ones: only raw, untempered, untruncated ones can be.

    Raises ConfigError where they were asked for and cannot serve.
    """
    generation, choice = config.generation, config.ppo.old_logprobs
    same_distribution = generation.temperature == 1.0 and generation.top_k == 0 and generation.top_p == 1.0
    if choice == "generator" and not same_distribution:
        raise ConfigError(
            "ppo.old_logprobs: the generator's log-probs are raw ones, and with generation.temperature other than 1, "
            "top_k or top_p the ratio to the learner's would be biased. Set ppo.old_logprobs=learner (or auto)."
        )
    if choice == "auto":
        return same_distribution and not config.run.exact
    return choice == "generator"


class _Iteration:
    """One iteration in progress."""

    def __init__(self, objective: PPOObjective, index: RolloutIndex, fetch: Fetch, iteration: PPOIteration) -> None:
        self.o, self.index, self.iteration = objective, index, iteration
        self.config, self.group = objective.config, objective.group
        ppo, seed = self.config.ppo, [self.config.run.seed, iteration.number]
        self.seed = seed
        self.members = minibatches(len(index), ppo.samples_per_minibatch or len(index), seed)
        self.tokens = [max(int(index.response_length[m].sum()), 1) for m in self.members]
        budget, rank, ranks = self.config.learner.tokens_per_microbatch, self.group.rank, self.group.size
        self.micros = [
            load_micros(microbatches(m, index.lengths, ranks, budget)[rank], index, fetch, self.group.device)
            for m in self.members
        ]
        self.sums, self.kl_sums, self.gap_sums, self.audited = Sums(), Sums(), Sums(), False
        self.steps: dict[str, list[StepStats]] = {"policy": [], "critic": []}
        self.have_advantages = self.stopped_early = False

    # -- before the first step -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Old log-probs and old values where the update's own passes cannot yield them."""
        o = self.o
        if o.old_from_generator:
            for micro in self._all():
                micro.old_logprobs = micro.behaviour
        if o.critic is None and len(self.members) == len(self.micros[0]) == 1 and not self.iteration.policy_frozen:
            return  # _first_pass
        if not o.old_from_generator or o.critic is None or self.iteration.policy_frozen:
            for micro in self._all():
                self._old_from_policy(micro)
            self._audit_done()
        if o.critic is not None and len(self.members) > 1:
            for micro in self._all():
                with torch.no_grad():
                    micro.old_values = micro.batch.pad(o.critic.network(micro.batch))
        if o.critic is None or len(self.members) > 1:
            for micro in self._all():
                self._set_advantages(micro)
            self._whiten()

    def _all(self) -> list[Micro]:
        return [micro for minibatch in self.micros for micro in minibatch]

    @torch.no_grad()
    def _old_from_policy(self, micro: Micro) -> None:
        self._take_old(micro, self.o.policy.network(micro.batch, self.config.generation.temperature, with_raw=True))

    def _take_old(self, micro: Micro, output: PolicyOutput) -> None:
        """Old log-probs and values as the unmoved policy has them, and the audit of its raw log-probs."""
        assert output.raw_logprobs is not None
        if not self.o.old_from_generator:
            micro.old_logprobs = micro.batch.pad(output.logprobs.detach())
        if output.values is not None:
            micro.old_values = micro.batch.pad(output.values.detach())
        self._audit(micro, micro.batch.pad(output.raw_logprobs))

    @torch.no_grad()
    def _set_advantages(self, micro: Micro) -> None:
        """GAE over this micro-batch's sequences, and the statistics of what went in."""
        ppo, kl, old = self.config.ppo, self.config.kl, micro.old_logprobs
        penalty, reference = None, micro.reference
        if reference is not None and kl.placement == "reward":
            penalty = kl_estimate(old, reference, kl.estimator)
        for name, estimator in KL_METRICS.items():
            observed = kl_estimate(old, old if reference is None else reference, estimator, micro.mask)
            self.kl_sums.add(**{name: observed.sum()})
        self.kl_sums.add(referenced=micro.mask.sum() * (reference is not None))
        rewards = token_rewards(micro.scores, micro.mask, penalty, self.iteration.kl_coef)
        micro.advantages, micro.returns = gae(rewards, micro.old_values, micro.mask, ppo.gamma, ppo.gae_lambda)

    def _whiten(self) -> None:
        self.have_advantages = True
        self._value_statistics()
        if not self.config.ppo.whiten_advantages:
            return
        local = Moments()
        for micro in self._all():
            local += Moments.of(micro.advantages, micro.mask)
        total = Moments(**self.group.reduce(vars(local)))
        for micro in self._all():
            micro.advantages = whiten(micro.advantages, micro.mask, total)

    def _value_statistics(self) -> None:
        returns, errors = Moments(), Moments()
        for micro in self._all():
            returns += Moments.of(micro.returns, micro.mask)
            errors += Moments.of(micro.returns - micro.old_values, micro.mask)
        returns, errors = (Moments(**self.group.reduce(vars(m))) for m in (returns, errors))
        variance = returns.std**2
        self.values = {
            "value/returns_mean": returns.mean,
            "value/explained_variance": 1 - errors.std**2 / variance if variance else 0.0,
        }

    # -- the audit -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _audit(self, micro: Micro, raw_logprobs: Tensor) -> None:
        difference = torch.where(micro.mask, micro.behaviour - raw_logprobs, 0)
        gap = difference.abs().nan_to_num(torch.inf, torch.inf)
        self.gap_sums.add(gap=gap.sum(), bias=difference.sum(), tokens=micro.mask.sum())
        self.gap_sums.largest(largest=gap.amax())

    def _audit_done(self) -> None:
        """Merge the ranks' gaps; past the tolerance every rank raises, before the policy has moved."""
        total = self.gap_sums.over(self.group)
        tokens = max(total["tokens"], 1.0)
        self.gap = LogprobGap(total["gap"] / tokens, total["largest"], total["bias"] / tokens, int(total["tokens"]))
        self.o.check_gap(self.gap, self.iteration.number)
        self.audited = True

    # -- the epochs ----------------------------------------------------------------------------------------------------

    def epochs(self) -> None:
        ppo = self.config.ppo
        for epoch in range(ppo.ppo_epochs):
            for minibatch in epoch_order(len(self.members), epoch, self.seed):
                if self.o.critic is not None:
                    self._critic_step(self.micros[minibatch], self.tokens[minibatch])
                if self.iteration.policy_frozen and self.o.critic is not None:
                    continue
                self._policy_step(self.micros[minibatch], self.tokens[minibatch])
                if self.stopped_early:
                    return

    def _critic_step(self, micros: list[Micro], tokens: int) -> None:
        critic = self.o.critic
        assert critic is not None
        first = not self.have_advantages
        for micro in micros:
            values = micro.batch.pad(critic.network(micro.batch))
            if first:
                micro.old_values = values.detach()
                self._set_advantages(micro)
            critic.backward(self._value_loss(values, micro) / tokens)
        self.steps["critic"].append(critic.step())
        if first:
            self._whiten()

    def _value_loss(self, values: Tensor, micro: Micro) -> Tensor:
        loss = value_loss(values, micro.old_values, micro.returns, micro.mask, self.config.ppo.value_clip_range)
        self.sums.add(value_loss=loss.loss_sum, value_clipped=loss.clipped_tokens, value_tokens=micro.mask.sum())
        return loss.loss_sum

    def _policy_step(self, micros: list[Micro], tokens: int) -> None:
        """One optimiser step of the policy; none, and `stopped_early`, when it has moved past ppo.target_kl already."""
        policy, frozen, limit = self.o.policy, self.iteration.policy_frozen, self.config.ppo.target_kl
        moved = Sums()
        for micro in micros:
            audit = not self.audited
            output = policy.network(micro.batch, self.config.generation.temperature, with_raw=audit)
            if audit:
                self._first_pass(micro, output)
            policy.backward(self._objective(output, micro, moved) / tokens)
        if not self.audited:
            self._audit_done()
        if limit is not None and not frozen and moved.over(self.group)["kl"] / tokens > limit:
            policy.discard()
            self.stopped_early = True
            return
        self.steps["policy"].append(policy.step(only="value_head." if frozen else ""))

    def _first_pass(self, micro: Micro, output: PolicyOutput) -> None:
        """What the first pass over an unmoved policy is good for, before its loss."""
        self._take_old(micro, output)
        if not self.have_advantages:  # the only micro-batch, and its values came just now
            self._set_advantages(micro)
            self._whiten()

    def _objective(self, output: PolicyOutput, micro: Micro, moved: Sums) -> Tensor:
        """Sum over the micro-batch's tokens of everything that trains the policy network."""
        total = output.logprobs.new_zeros(())
        if output.values is not None:
            total = total + self.config.ppo.value_loss_coef * self._value_loss(micro.batch.pad(output.values), micro)
        if not self.iteration.policy_frozen:
            total = total + self._policy_loss(output, micro, moved)
        return total

    def _policy_loss(self, output: PolicyOutput, micro: Micro, moved: Sums) -> Tensor:
        ppo, kl, batch = self.config.ppo, self.config.kl, micro.batch
        logprobs = batch.pad(output.logprobs)
        loss = policy_loss(logprobs, micro.old_logprobs, micro.advantages, micro.mask, ppo.clip_range)
        entropy, total = output.entropy.sum(), loss.loss_sum
        if ppo.entropy_coef:
            total = total - ppo.entropy_coef * entropy
        if kl.placement == "loss" and micro.reference is not None:
            penalty = kl_estimate(logprobs, micro.reference, kl.estimator, micro.mask)
            total = total + self.iteration.kl_coef * penalty.sum()
        self.sums.add(policy_loss=loss.loss_sum, clipped=loss.clipped_tokens, ratio=loss.ratio_sum)
        self.sums.add(approx_kl=loss.approx_kl_sum, entropy=entropy, tokens=micro.mask.sum())
        self.sums.largest(ratio_max=loss.ratio_max)
        moved.add(kl=loss.approx_kl_sum)
        return total

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Global means over the epochs run, with the names of the field."""
        sums, kl, samples = self.sums.over(self.group), self.kl_sums.over(self.group), len(self.index)
        metrics = {"policy/stopped_early": float(self.stopped_early), **self.values}
        if tokens := sums.get("tokens"):
            metrics |= {
                "loss/policy": sums["policy_loss"] / tokens,
                "policy/clip_fraction": sums["clipped"] / tokens,
                "policy/ratio_mean": sums["ratio"] / tokens,
                "policy/ratio_max": sums["ratio_max"],
                "policy/entropy": sums["entropy"] / tokens,
                "policy/approx_kl": sums["approx_kl"] / tokens,
            }
        if value_tokens := sums.get("value_tokens"):
            metrics["loss/value"] = sums["value_loss"] / value_tokens
            metrics["value/clip_fraction"] = sums["value_clipped"] / value_tokens
        if kl["referenced"]:
            metrics |= {name: kl[name] / samples for name in KL_METRICS}
        for name, steps in self.steps.items():
            if steps:
                metrics[f"{name}/grad_norm"] = float(np.mean([step.grad_norm for step in steps]))
                metrics[f"{name}/learning_rate"] = steps[-1].learning_rate
                metrics[f"{name}/steps"] = len(steps)
                metrics[f"{name}/skipped_steps"] = sum(step.skipped for step in steps)
        return metrics
