"""The batch arithmetic of a PPO run: what follows from the configured numbers, and what cannot be.

32 prompts x 4 samples = 128 samples = 4 minibatches of 32, x 2 PPO epochs = 8 optimiser steps per iteration
"""

import math
from dataclasses import dataclass

from rlhf_ray.config.algorithm import check_algorithm
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.errors import ConfigError


@dataclass(frozen=True)
class Arithmetic:
    """Numbers of a run. `iterations` and the totals are None until the number of prompts is known (run in epochs)."""

    prompts: int | None
    prompts_per_iteration: int
    samples_per_prompt: int
    samples_per_minibatch: int
    ppo_epochs: int
    iterations: int | None

    @property
    def samples_per_iteration(self) -> int:
        return self.prompts_per_iteration * self.samples_per_prompt

    @property
    def minibatches_per_epoch(self) -> int:
        return self.samples_per_iteration // self.samples_per_minibatch

    @property
    def optimiser_steps_per_iteration(self) -> int:
        """At most: a target_kl may end an iteration's epochs early, dynamic sampling may find fewer samples."""
        return self.minibatches_per_epoch * self.ppo_epochs

    @property
    def total_samples(self) -> int | None:
        return None if self.iterations is None else self.iterations * self.samples_per_iteration

    @property
    def total_optimiser_steps(self) -> int | None:
        return None if self.iterations is None else self.iterations * self.optimiser_steps_per_iteration

    @property
    def passes_over_prompts(self) -> float | None:
        if self.iterations is None or self.prompts is None:
            return None
        return self.iterations * self.prompts_per_iteration / self.prompts

    def lines(self) -> list[str]:
        """The arithmetic as sentences for the console."""
        lines = [
            f"{_count(self.prompts_per_iteration, 'prompt')} x {_count(self.samples_per_prompt, 'sample')}"
            f" = {_count(self.samples_per_iteration, 'sample')} per iteration",
            f"{_count(self.minibatches_per_epoch, 'minibatch')} of {_count(self.samples_per_minibatch, 'sample')}"
            f" x {_count(self.ppo_epochs, 'PPO epoch')}"
            f" = {_count(self.optimiser_steps_per_iteration, 'optimiser step')} per iteration",
        ]
        if self.total_samples is not None and self.total_optimiser_steps is not None:
            passes = self.passes_over_prompts
            over = "" if passes is None else f", {passes:.2g} passes over {_count(self.prompts or 0, 'prompt')}"
            lines.append(
                f"{_count(self.iterations or 0, 'iteration')}: {_count(self.total_samples, 'sample')},"
                f" {_count(self.total_optimiser_steps, 'optimiser step')}{over}"
            )
        return lines


def ppo_arithmetic(config: PPOConfig, prompts: int | None = None) -> Arithmetic:
    """The arithmetic of a run over `prompts` prompts (None: not known yet).

    Raises:
        ConfigError: the run has no length or two, a batch does not divide, or there are fewer items than must be drawn;
            or the algorithm's keys contradict each other (`check_algorithm`).
    """
    check_algorithm(config)
    ppo = config.ppo
    samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
    minibatch = ppo.samples_per_minibatch or samples
    product = f"prompts_per_iteration x samples_per_prompt = {samples}"
    if (ppo.iterations is None) == (ppo.epochs is None):
        found = "neither" if ppo.iterations is None else "both"
        raise ConfigError(f"ppo.iterations, ppo.epochs: give one of them as the length of the run, found {found}")
    if samples % minibatch:
        divisors = _nearest_divisors(samples, minibatch)
        raise ConfigError(f"ppo.samples_per_minibatch: {minibatch} does not divide {product}; nearest: {divisors}")
    if minibatch < config.learner.ranks:
        raise ConfigError(
            f"ppo.samples_per_minibatch: {minibatch} is less than learner.ranks ({config.learner.ranks}),"
            f" so some ranks would have nothing to train on"
        )
    if prompts is not None and prompts < ppo.prompts_per_iteration:
        raise ConfigError(
            f"ppo.prompts_per_iteration: {ppo.prompts_per_iteration}, but data.path has only {prompts} prompts;"
            f" draw fewer, or raise ppo.samples_per_prompt"
        )
    if config.generation.min_new_tokens > config.generation.max_new_tokens:
        raise ConfigError(
            f"generation.min_new_tokens: {config.generation.min_new_tokens} is more than"
            f" generation.max_new_tokens ({config.generation.max_new_tokens})"
        )
    iterations = ppo.iterations
    if ppo.epochs is not None and prompts is not None:
        iterations = math.ceil(ppo.epochs * prompts / ppo.prompts_per_iteration)
    if iterations is not None and config.critic.warmup_iterations >= iterations:
        raise ConfigError(
            f"critic.warmup_iterations: {config.critic.warmup_iterations} leaves none of the run's {iterations}"
            f" iterations for the policy"
        )
    return Arithmetic(
        prompts=prompts,
        prompts_per_iteration=ppo.prompts_per_iteration,
        samples_per_prompt=ppo.samples_per_prompt,
        samples_per_minibatch=minibatch,
        ppo_epochs=ppo.ppo_epochs,
        iterations=iterations,
    )


def _nearest_divisors(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = [d for d in divisors if d <= wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in below + above)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("batch") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
