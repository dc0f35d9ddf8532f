"""The PPO objective on one learner rank (Schulman et al. 2017), over micro-batches of one iteration's samples.

Passes that would compute the same numbers twice are not made:
- While the policy has not moved since it sampled, the generator's log-probs are the old ones (fast mode; the audit
  below vouches for them). Otherwise one pass without gradients takes them from the learner.
- With a single minibatch, the first pass of a separate critic's update yields the old values too: GAE needs only its
  own sequence's values, so advantages follow from the update's own forward pass.
- With a value head, the same holds where the whole minibatch is one micro-batch on every rank: whitening needs them
  all.
- Without a critic advantages need no pass of their own, unless the KL penalty is part of the reward and the old
  log-probs are the learner's. With a single minibatch the update's first pass yields these too.

The audit rides on the first pass over each sample at the weights that generated it, before the first optimiser step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.config.algorithm import critic_kind, generator_logprobs_serve, loss_average
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.learner.experience import Fetch, Micro, RolloutIndex, load_micros
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.guards import Origin
from rlhf_ray.learner.plan import epoch_order, microbatches, minibatches
from rlhf_ray.learner.ppo_advantages import Advantages
from rlhf_ray.learner.ppo_audit import GapMeter
from rlhf_ray.learner.ppo_loss import Minibatch, PPOLoss
from rlhf_ray.learner.quarantine import ppo_rows
from rlhf_ray.learner.trainable import BAD_UPDATES, StepStats, Trainable
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
    """Runs the PPO epochs of an iteration over a policy and, if there is a separate one, a critic."""

    def __init__(
        self,
        policy: Trainable,
        critic: Trainable | None,
        config: PPOConfig,
        group: LearnerGroup,
        check_gap: Callable[[LogprobGap, int], None],
    ) -> None:
        self.policy, self.critic, self.config, self.group, self.check_gap = policy, critic, config, group, check_gap
        self.value_head = critic_kind(config) == "value_head"
        self.old_from_generator = generator_logprobs_serve(config)

    def train(self, index: RolloutIndex, fetch: Fetch, iteration: PPOIteration) -> tuple[dict[str, float], LogprobGap]:
        """All PPO epochs over the iteration's samples; global metrics and the audit's gap, the same on every rank.

        `index` describes the samples of all ranks; this rank fetches its own share.
        """
        run = _Iteration(self, index, fetch, iteration)
        run.prepare()
        run.epochs()
        assert run.audit.gap is not None
        return run.metrics(), run.audit.gap


class _Iteration:
    """One iteration in progress."""

    def __init__(self, objective: PPOObjective, index: RolloutIndex, fetch: Fetch, iteration: PPOIteration) -> None:
        self.o, self.index, self.iteration = objective, index, iteration
        self.config, self.group = objective.config, objective.group
        self.seed = [self.config.run.seed, iteration.number]
        self.minibatches = self._load(fetch)
        self.micros = [micro for minibatch in self.minibatches for micro in minibatch.micros]
        self.advantages = Advantages(self.config, index, self.group, iteration.kl_coef)
        self.loss = PPOLoss(self.config, iteration.kl_coef)
        self.audit = GapMeter(self.group, objective.check_gap, iteration.number)
        self.kl_sums = Sums()
        self.steps: dict[str, list[StepStats]] = {"policy": [], "critic": []}
        self.stopped_early = False

    def _load(self, fetch: Fetch) -> list[Minibatch]:
        """All minibatches, with the micro-batches that are this rank's."""
        index, size = self.index, self.config.ppo.samples_per_minibatch or len(self.index)
        budget, group, average = self.config.learner.tokens_per_microbatch, self.group, loss_average(self.config)
        loaded = []
        for members in minibatches(len(index), size, self.seed):
            plan = microbatches(members, index.lengths, group.size, budget)[group.rank]
            micros = load_micros(plan, index, fetch, group.device)
            loaded.append(Minibatch.of(micros, index.response_length[members], average))
        return loaded

    # -- before the first step -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Old log-probs, old values and advantages where the update's own passes cannot yield them."""
        o, single = self.o, len(self.minibatches) == 1
        if o.old_from_generator:
            for micro in self.micros:
                self._set_old(micro, micro.behaviour)
        if o.critic is None and len(self.micros) == 1 and not self.iteration.policy_frozen:
            return  # _first_pass
        if self._pass_ahead(single):
            for micro in self.micros:
                self._old_from_policy(micro)
            self.audit.close()
        if o.critic is not None and single:
            return  # _critic_step
        for micro in self.micros:
            if o.critic is not None:
                with torch.no_grad():
                    micro.old_values = micro.batch.pad(o.critic.network(micro.batch))
            self.advantages.add(micro)
        self.advantages.finish(self.micros)

    def _pass_ahead(self, single: bool) -> bool:
        """Whether the policy must be asked before its update. Asked of a `single` minibatch, every sample's first pass
        is one over an unmoved policy."""
        if self.o.value_head or self.iteration.policy_frozen:
            return True
        first_pass_serves = single and self.o.critic is None and not self.advantages.need_old_logprobs
        return not self.o.old_from_generator and not first_pass_serves

    @torch.no_grad()
    def _old_from_policy(self, micro: Micro) -> None:
        self._take_old(micro, self.o.policy.network(micro.batch, self.config.generation.temperature, with_raw=True))

    def _take_old(self, micro: Micro, output: PolicyOutput) -> None:
        """Old log-probs and values as the unmoved policy has them, and the audit of its raw log-probs."""
        assert output.raw_logprobs is not None
        if not self.o.old_from_generator:
            self._set_old(micro, micro.batch.pad(output.logprobs.detach()))
        if output.values is not None:
            micro.old_values = micro.batch.pad(output.values.detach())
        self.audit.add(micro, micro.batch.pad(output.raw_logprobs))

    def _set_old(self, micro: Micro, logprobs: Tensor) -> None:
        """The old log-probs, [batch, time], and how far they are from the reference's."""
        micro.old_logprobs, reference = logprobs, micro.reference
        for name, estimator in KL_METRICS.items():
            observed = kl_estimate(logprobs, logprobs if reference is None else reference, estimator, micro.mask)
            self.kl_sums.add(**{name: observed.sum()})
        self.kl_sums.add(referenced=micro.mask.sum() * (reference is not None))

    # -- the epochs ----------------------------------------------------------------------------------------------------

    def epochs(self) -> None:
        for epoch in range(self.config.ppo.ppo_epochs):
            for number in epoch_order(len(self.minibatches), epoch, self.seed):
                if self.o.critic is not None:
                    self._critic_step(self.minibatches[number])
                if self.iteration.policy_frozen and self.o.critic is not None:
                    continue
                self._policy_step(self.minibatches[number])
                if self.stopped_early:
                    return

    def _critic_step(self, minibatch: Minibatch) -> None:
        critic, first = self.o.critic, not self.advantages.finished
        assert critic is not None
        for micro in critic.accumulating(minibatch.micros):
            values = micro.batch.pad(critic.network(micro.batch))
            if first:
                micro.old_values = values.detach()
                self.advantages.add(micro)
            critic.backward(self.loss.value(values, micro, minibatch))
        self.steps["critic"].append(critic.step(self._origin("critic", minibatch)))
        if first:
            self.advantages.finish(self.micros)

    def _policy_step(self, minibatch: Minibatch) -> None:
        """One optimiser step of the policy; none, and `stopped_early`, when it has moved past ppo.target_kl already."""
        policy, frozen, limit = self.o.policy, self.iteration.policy_frozen, self.config.ppo.target_kl
        audit, moved = self.audit.gap is None, Sums()
        for micro in policy.accumulating(minibatch.micros):
            output = policy.network(micro.batch, self.config.generation.temperature, with_raw=audit)
            if audit:
                self._first_pass(micro, output)
            policy.backward(self._objective(output, micro, minibatch, moved))
        if audit:
            self.audit.close()
        if limit is not None and not frozen and moved.over(self.group)["kl"] / minibatch.tokens > limit:
            policy.discard()
            self.stopped_early = True
            return
        only = "value_head." if frozen else ""
        self.steps["policy"].append(policy.step(self._origin("policy", minibatch), only))

    def _origin(self, network: str, minibatch: Minibatch) -> Origin:
        """Where the coming step of `network` comes from."""
        step = len(self.steps[network]) + 1
        return Origin(self.iteration.number + 1, step, lambda: ppo_rows(minibatch.micros, self.index))

    def _first_pass(self, micro: Micro, output: PolicyOutput) -> None:
        """What the first pass over an unmoved policy is good for, before its loss."""
        self._take_old(micro, output)
        if not self.advantages.finished:  # the only micro-batch, and what it needs came just now
            self.advantages.add(micro)
            self.advantages.finish(self.micros)

    def _objective(self, output: PolicyOutput, micro: Micro, minibatch: Minibatch, moved: Sums) -> Tensor:
        """Everything that trains the policy network, as this micro-batch's share of the minibatch's loss."""
        total = output.logprobs.new_zeros(())
        if output.values is not None:
            values = micro.batch.pad(output.values)
            total = total + self.config.ppo.value_loss_coef * self.loss.value(values, micro, minibatch)
        if not self.iteration.policy_frozen:
            total = total + self.loss.policy(output, micro, minibatch, moved)
        return total

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Global means over the epochs run, with the names of the field."""
        metrics = {"policy/stopped_early": float(self.stopped_early)}
        metrics |= self.advantages.metrics | self.loss.metrics(self.group)
        kl = self.kl_sums.over(self.group)
        if kl["referenced"]:
            metrics |= {name: kl[name] / len(self.index) for name in KL_METRICS}
        for name, steps in self.steps.items():
            if steps:
                metrics[f"{name}/grad_norm"] = float(np.mean([step.grad_norm for step in steps]))
                metrics[f"{name}/learning_rate"] = steps[-1].learning_rate
                metrics[f"{name}/steps"] = len(steps)
                metrics[f"{name}/skipped_steps"] = sum(step.skipped for step in steps)
        bad = sum(step.bad for steps in self.steps.values() for step in steps)
        return metrics | ({BAD_UPDATES: float(bad)} if bad else {})
