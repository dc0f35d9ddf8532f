"""The PPO objective on one learner rank (Schulman et al. 2017), over micro-batches of one iteration's samples.

Passes that would compute the same numbers twice are not made:
- While the policy has not moved since it sampled, the generator's log-probs are the old ones (fast mode; the audit below vouches
  for them). Otherwise one pass without gradients takes them from the learner.
- With a single minibatch, the first pass of a separate critic's update yields the old values too: GAE needs only its own
  sequence's values, so advantages follow from the update's own forward pass.

The audit rides on the first pass over each sample at the weights that generated it, before the first optimiser step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algorithms.advantages import gae, token_rewards, whiten
from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.algorithms.losses import policy_loss, value_loss
from rlhf_ray.algorithms.masked import Moments, masked_sum
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.learner.experience import Fetch, Micro, RolloutIndex, load_micros
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.plan import epoch_order, microbatches, minibatches
from rlhf_ray.learner.trainable import StepStats, Trainable
from rlhf_ray.models.networks import PolicyOutput
from rlhf_ray.weights.audit import LogprobGap


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
        check_gap: Callable[[LogprobGap], None],
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
    """Whether the generator's log-probs are the old ones: only raw, untempered, untruncated ones can be."""
    generation, choice = config.generation, config.ppo.old_logprobs
    same_distribution = generation.temperature == 1.0 and generation.top_k == 0 and generation.top_p == 1.0
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
        self.tokens = [int(index.response_length[m].sum()) for m in self.members]
        budget, rank, ranks = self.config.learner.tokens_per_microbatch, self.group.rank, self.group.size
        self.micros = [
            load_micros(microbatches(m, index.lengths, ranks, budget)[rank], index, fetch, self.group.device)
            for m in self.members
        ]
        self.sums, self.kl_sums, self.gap_sums, self.audited = Sums(), Sums(), Sums(), False
        self.steps: dict[str, list[StepStats]] = {"policy": [], "critic": []}
        self.stopped_early = False

    # -- before the first step --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Old log-probs and old values where the update's own passes cannot yield them."""
        o = self.o
        if not o.old_from_generator or o.critic is None or self.iteration.policy_frozen:
            for micro in self._all():
                self._old_from_policy(micro)
            self._audit_done()
        if o.old_from_generator:
            for micro in self._all():
                micro.old_logprobs = micro.behaviour
        if o.critic is not None and len(self.members) > 1:
            for micro in self._all():
                with torch.no_grad():
                    micro.old_values = micro.batch.pad(o.critic.network(micro.batch))
        if all(micro.old_values is not None for micro in self._all()):
            for micro in self._all():
                self._set_advantages(micro)
            self._whiten()

    def _all(self) -> list[Micro]:
        return [micro for minibatch in self.micros for micro in minibatch]

    @torch.no_grad()
    def _old_from_policy(self, micro: Micro) -> None:
        output = self.o.policy.network(micro.batch, self.config.generation.temperature)
        micro.old_logprobs = micro.batch.pad(output.logprobs)
        if output.values is not None:
            micro.old_values = micro.batch.pad(output.values)
        self._audit(micro, micro.batch.pad(output.raw_logprobs))

    @torch.no_grad()
    def _set_advantages(self, micro: Micro) -> None:
        """GAE over this micro-batch's sequences, and the statistics of what went in."""
        ppo, kl, old = self.config.ppo, self.config.kl, micro.old_logprobs
        assert old is not None
        assert micro.old_values is not None
        penalty = None
        if micro.reference is not None:
            self.kl_sums.add(kl=masked_sum(kl_estimate(old, micro.reference, "k1"), micro.mask))
            self.kl_sums.add(kl_k3=masked_sum(kl_estimate(old, micro.reference, "k3"), micro.mask))
            if self.config.kl.placement == "reward":
                penalty = kl_estimate(old, micro.reference, kl.estimator)
        rewards = token_rewards(micro.scores, micro.mask, penalty, self.iteration.kl_coef)
        micro.advantages, micro.returns = gae(rewards, micro.old_values, micro.mask, ppo.gamma, ppo.gae_lambda)

    def _whiten(self) -> None:
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

    # -- the audit --------------------------------------------------------------------------------------------------------

    def _audit(self, micro: Micro, raw_logprobs: Tensor) -> None:
        gap = torch.where(micro.mask, (micro.behaviour - raw_logprobs).abs(), 0)
        self.gap_sums.add(gap=gap.sum(), tokens=micro.mask.sum())
        self.gap_sums.largest(gap_max=gap.amax())

    def _audit_done(self) -> None:
        """Merge the ranks' gaps; past the tolerance every rank raises, before the policy has moved."""
        total = self.gap_sums.over(self.group)
        self.gap = LogprobGap(total["gap"] / max(total["tokens"], 1.0), total["gap_max"], int(total["tokens"]))
        self.o.check_gap(self.gap)
        self.audited = True

    # -- the epochs -------------------------------------------------------------------------------------------------------

    def epochs(self) -> None:
        ppo = self.config.ppo
        for epoch in range(ppo.ppo_epochs):
            for minibatch in epoch_order(len(self.members), epoch, self.seed):
                if self.o.critic is not None:
                    self._critic_step(self.micros[minibatch], self.tokens[minibatch])
                if self.iteration.policy_frozen and self.o.critic is not None:
                    continue
                moved = self._policy_step(self.micros[minibatch], self.tokens[minibatch])
                if ppo.target_kl is not None and moved > ppo.target_kl:
                    self.stopped_early = True
                    return

    def _critic_step(self, micros: list[Micro], tokens: int) -> None:
        critic = self.o.critic
        assert critic is not None
        first = micros[0].old_values is None
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

    def _policy_step(self, micros: list[Micro], tokens: int) -> float:
        """One optimiser step of the policy; KL(old || new) in nats per token as measured in its forward passes."""
        policy, moved = self.o.policy, Sums()
        for micro in micros:
            output = policy.network(micro.batch, self.config.generation.temperature)
            if not self.audited:
                self._audit(micro, micro.batch.pad(output.raw_logprobs.detach()))
            policy.backward(self._objective(output, micro, moved) / tokens)
        if not self.audited:
            self._audit_done()
        self.steps["policy"].append(policy.step())
        return moved.over(self.group).get("kl", 0.0) / tokens

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
        entropy = masked_sum(batch.pad(output.entropy), micro.mask)
        total = loss.loss_sum - ppo.entropy_coef * entropy
        if kl.placement == "loss" and micro.reference is not None:
            penalty = kl_estimate(logprobs, micro.reference, kl.estimator, micro.mask)
            total = total + self.iteration.kl_coef * penalty.sum()
        self.sums.add(policy_loss=loss.loss_sum, clipped=loss.clipped_tokens, ratio=loss.ratio_sum)
        self.sums.add(approx_kl=loss.approx_kl_sum, entropy=entropy, tokens=micro.mask.sum())
        self.sums.largest(ratio_max=loss.ratio_max)
        moved.add(kl=loss.approx_kl_sum)
        return total

    # -- afterwards -------------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Global means over the epochs run, with the names of the field."""
        sums, kl = self.sums.over(self.group), self.kl_sums.over(self.group)
        tokens, samples = max(sums.get("tokens", 0.0), 1.0), len(self.index)
        metrics = {
            "loss/policy": sums.get("policy_loss", 0.0) / tokens,
            "loss/value": sums["value_loss"] / max(sums["value_tokens"], 1.0),
            "policy/clip_fraction": sums.get("clipped", 0.0) / tokens,
            "policy/ratio_mean": sums.get("ratio", tokens) / tokens,
            "policy/ratio_max": sums.get("ratio_max", 1.0),
            "policy/entropy": sums.get("entropy", 0.0) / tokens,
            "policy/approx_kl": sums.get("approx_kl", 0.0) / tokens,
            "policy/stopped_early": float(self.stopped_early),
            "value/clip_fraction": sums["value_clipped"] / max(sums["value_tokens"], 1.0),
            **self.values,
        }
        if kl:
            metrics |= {"kl/mean": kl["kl"] / samples, "kl/k3": kl["kl_k3"] / samples}
        for name, steps in self.steps.items():
            if steps:
                metrics[f"{name}/grad_norm"] = float(np.mean([step.grad_norm for step in steps]))
                metrics[f"{name}/learning_rate"] = steps[-1].learning_rate
                metrics[f"{name}/steps"] = len(steps)
                metrics[f"{name}/skipped_steps"] = sum(step.skipped for step in steps)
        return metrics
