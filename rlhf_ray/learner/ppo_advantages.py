"""From an iteration's rewards to its advantages: over the micro-batches of one rank, and the groups of all ranks.

With a critic (gae) and for reinforce_pp each micro-batch gets its advantages at once, from its own tokens. A group
estimator compares whole responses with those to the same prompt wherever they lie: every rank knows all rewards from
the index, and where the KL penalty is part of the reward, the ranks add up their samples' penalties in one call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ray.algorithms.advantages import gae, token_rewards, whiten
from rlhf_ray.algorithms.estimators import GROUP_ESTIMATORS
from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.algorithms.masked import Moments
from rlhf_ray.config.algorithm import estimator_traits, whitens
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.learner.experience import Micro, RolloutIndex
from rlhf_ray.learner.group import LearnerGroup


class Advantages:
    """The advantages of one iteration. `add` every micro-batch, then `finish` once, on all ranks alike."""

    def __init__(self, config: PPOConfig, index: RolloutIndex, group: LearnerGroup, kl_coef: float) -> None:
        self._config, self._index, self._group, self._kl_coef = config, index, group, kl_coef
        self._compare = GROUP_ESTIMATORS.get(config.ppo.advantage)
        self._critic = estimator_traits(config).critic
        self._penalties = torch.zeros(len(index), dtype=torch.float64)  # of this rank's samples, the others' are 0
        self.finished = False
        self.metrics: dict[str, float] = {}

    @property
    def need_old_logprobs(self) -> bool:
        """Whether `add` reads them: for the KL penalty in the reward."""
        return self._config.kl.placement == "reward" and self._config.kl.coef > 0

    @torch.no_grad()
    def add(self, micro: Micro) -> None:
        """Take in a micro-batch that has its old log-probs, where needed, and with a critic its old values."""
        ppo, penalty = self._config.ppo, None
        if self.need_old_logprobs and micro.reference is not None:
            penalty = kl_estimate(micro.old_logprobs, micro.reference, self._config.kl.estimator, micro.mask)
        if self._compare is not None:
            if penalty is not None:
                self._penalties[micro.members] = penalty.sum(1).double().cpu()
            return
        rewards = token_rewards(micro.scores, micro.mask, penalty, self._kl_coef)
        if self._critic:
            micro.advantages, micro.returns = gae(rewards, micro.old_values, micro.mask, ppo.gamma, ppo.gae_lambda)
        else:  # the discounted sum of all later rewards
            micro.advantages, _ = gae(rewards, torch.zeros_like(rewards), micro.mask, ppo.gamma, 1.0)

    @torch.no_grad()
    def finish(self, micros: Sequence[Micro]) -> None:
        """Compare and whiten, when all of the rank's micro-batches were added."""
        if self._compare is not None:
            self._from_groups(micros)
        if self._critic:
            self.metrics |= self._value_statistics(micros)
        if whitens(self._config):
            total = self._moments([micro.advantages for micro in micros], micros)
            for micro in micros:
                micro.advantages = whiten(micro.advantages, micro.mask, total, centre=self._compare is None)
        self.finished = True

    def _from_groups(self, micros: Sequence[Micro]) -> None:
        """Every token of a response gets its response's advantage."""
        assert self._compare is not None
        returns = torch.from_numpy(self._index.reward)
        if self.need_old_logprobs:
            returns = returns - self._kl_coef * self._group.total(self._penalties)
        advantages = self._compare(returns, torch.from_numpy(self._index.prompt_id)).float()
        for micro in micros:
            own = torch.zeros(len(micro.mask))
            own[: len(micro.members)] = advantages[micro.members]
            micro.advantages = torch.where(micro.mask, own.to(micro.mask.device)[:, None], 0)

    def _value_statistics(self, micros: Sequence[Micro]) -> dict[str, float]:
        returns = self._moments([micro.returns for micro in micros], micros)
        errors = self._moments([micro.returns - micro.old_values for micro in micros], micros)
        variance = returns.std**2
        return {
            "value/returns_mean": returns.mean,
            "value/explained_variance": 1 - errors.std**2 / variance if variance else 0.0,
        }

    def _moments(self, columns: Sequence[Tensor], micros: Sequence[Micro]) -> Moments:
        """Over the real tokens of all ranks."""
        local = Moments()
        for column, micro in zip(columns, micros, strict=True):
            local += Moments.of(column, micro.mask)
        return Moments(**self._group.reduce(vars(local)))
