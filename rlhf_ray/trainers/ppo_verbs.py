"""What one iteration of PPO calls on its actors: collect samples, learn from them, publish the weights."""

import time

import pyarrow as pa

from rlhf_ray.data.order import draw
from rlhf_ray.errors import BadUpdate
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.rewards.compose import Composed
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.trainers.digests import write_digests
from rlhf_ray.trainers.dynamic_sampling import refill
from rlhf_ray.trainers.ppo_actors import PPOActors
from rlhf_ray.trainers.ppo_state import PPOState
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.shaping import shape
from rlhf_ray.weights.publish import SyncReport


class PPOVerbs(PPOState):
    """Every method takes the run from one moment of an iteration to the next. Iterations count from 0 here."""

    total_iterations: int

    def _collect(self, prompts: pa.Table, iteration: int, actors: PPOActors) -> Rollouts:
        """Draw prompts, sample responses, score them; under dynamic sampling until enough of them give a signal."""
        config, seed, dynamic = self.config, self.config.run.seed, self.config.ppo.dynamic_sampling
        rows = draw(len(prompts), config.ppo.prompts_per_iteration, iteration, seed, config.data.shuffle)
        rollouts = self._sample(prompts.take(rows), iteration, actors)
        if not dynamic.enabled:
            return rollouts
        return refill(
            rollouts,
            rows,
            len(prompts),
            max_rounds=dynamic.max_rounds,
            seed=(seed, iteration),
            collect=lambda more: self._sample(prompts.take(more), iteration, actors),
            with_signal=lambda found: shape(found, found.compose(config, self.normalizer), config).prompts_with_signal,
        )

    def _sample(self, prompts: pa.Table, iteration: int, actors: PPOActors) -> Rollouts:
        """Scored responses to these prompts; failures go to the quarantine."""
        title = f"iteration {iteration + 1} of {self.total_iterations}: sampling"
        with self.console.progress(title, len(prompts) * self.config.ppo.samples_per_prompt) as advance:
            rollouts = actors.collector().collect(prompts, iteration, self.config.run.seed, progress=advance)
        rollouts.check_version(iteration)
        append_failures(self.folder.quarantine, rollouts.failures, iteration + 1)
        return rollouts

    def _learn(self, rollouts: Rollouts, composed: Composed, iteration: int, actors: PPOActors) -> dict[str, float]:
        """The PPO epochs on the samples that are worth it."""
        started, shaped = time.monotonic(), shape(rollouts, composed, self.config)
        if self.config.ppo.dynamic_sampling.enabled and not shaped.prompts_with_signal:
            self.console.warn(f"iteration {iteration + 1}: no prompt's responses differ in reward, training on all")
        frozen = iteration < self.config.critic.warmup_iterations
        step = PPOIteration(iteration, self.kl.coef_at(iteration), frozen)
        index = rollouts.index(shaped.rewards, shaped.keep)
        samples = [batch.samples for batch in rollouts.batches]
        what = f"iteration {iteration + 1}"
        with self.console.progress(f"{what}: training"):
            try:
                metrics, gap = actors.learner.call(what, "train_ppo", index, samples, rollouts.references, step)
                metrics |= {"audit/mean_gap": gap.mean, "audit/max_gap": gap.max, "audit/tokens": gap.tokens}
            except BadUpdate as error:
                metrics = self._roll_back(error)
        metrics |= shaped.metrics() | {"samples/rounds": rollouts.rounds}
        return dict(metrics | {"seconds/train": time.monotonic() - started})

    def _publish(self, version: int) -> SyncReport:
        """Make the generators sample from the learner's weights; their digests are kept, per version."""
        actors = self._running()
        actors.learner.doing = "publish"
        report = actors.sync.publish(version=version, attempt=self._restorer.attempt)
        write_digests(self.folder.digests, version, report.digests)
        return report
