"""From composed rewards to those that the learner gets, and which samples it trains on."""

from dataclasses import dataclass

import numpy as np
import torch

from rlhf_ray.algorithms.estimators import has_signal
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.ppo import OverlongSection
from rlhf_ray.rewards.compose import Composed
from rlhf_ray.trainers.rollouts import Rollouts


@dataclass(frozen=True)
class Shaped:
    """The samples of an iteration as the learner gets them, in order of arrival."""

    rewards: np.ndarray  # float64 [samples]; NaN where there is none
    keep: np.ndarray  # bool [samples]: to train on
    prompts: int  # those with a reward
    prompts_with_signal: int  # those whose responses differ in reward

    def metrics(self) -> dict[str, float]:
        """Counters of what was sampled and is trained on."""
        return {
            "samples/total": float(len(self.keep)),
            "samples/trained": float(self.keep.sum()),
            "samples/prompts": float(self.prompts),
            "samples/prompts_with_signal": float(self.prompts_with_signal),
        }


def shape(rollouts: Rollouts, composed: Composed, config: PPOConfig) -> Shaped:
    """Clip the composed rewards, subtract the penalties for length, and choose the samples to train on.

    With `ppo.dynamic_sampling` the samples of a prompt whose rewards are all equal are left out, unless that would
    leave none: the KL penalty and a critic can still learn from them.
    """
    ppo, prompts = config.ppo, rollouts.column("prompt_id")
    rewards = composed.total
    if ppo.reward_clip is not None:
        rewards = np.clip(rewards, -ppo.reward_clip, ppo.reward_clip)
    rewards = rewards - ppo.missing_eos_penalty * rollouts.column("truncated")
    lengths = rollouts.column("response_length")
    rewards = rewards - overlong_penalty(lengths, config.generation.max_new_tokens, ppo.overlong)
    signal = composed.keep.copy()
    signal[signal] = has_signal(torch.from_numpy(rewards[signal]), torch.from_numpy(prompts[signal])).numpy()
    keep = signal if ppo.dynamic_sampling.enabled and signal.any() else composed.keep
    return Shaped(rewards, keep, len(np.unique(prompts[composed.keep])), len(np.unique(prompts[signal])))


def overlong_penalty(lengths: np.ndarray, max_new_tokens: int, section: OverlongSection) -> np.ndarray:
    """What is subtracted from responses of these lengths, float64 [samples] (DAPO, Yu et al. 2025, eq. 13).

    0 up to `max_new_tokens - buffer_tokens`, `penalty` at `max_new_tokens`, linear in between.
    """
    if not section.buffer_tokens:
        return np.zeros(len(lengths))
    over = (lengths - (max_new_tokens - section.buffer_tokens)) / section.buffer_tokens
    return section.penalty * np.clip(over, 0.0, 1.0)
