"""What a policy is good for besides training: answering prompts, and being scored on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.rewards import RewardComponent
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.check import check_reward_columns, check_rewards
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.schema import sample_schema
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callbacks
from rlhf_ray.trainers.evaluation import Evaluation
from rlhf_ray.trainers.inference import check_sampling, inference_actors, load_inputs, sample_texts
from rlhf_ray.trainers.ppo_actors import PPOActors
from rlhf_ray.trainers.rollout_actors import RolloutActors
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.session import Session


class PolicyUse:
    """`evaluate` and `generate` of a trainer, and the evaluations that its run makes by itself."""

    config: PPOConfig
    console: Console
    normalizer: RewardNormalizer
    folder: RunFolder  # of the run, once there is one
    resume: str | Path | None  # the run's folder, once there is a policy in it
    actors: PPOActors | None  # while the run is going on
    session: Session  # of the run that is going on
    callbacks: Callbacks
    _held_out: pa.Table | None  # prompts of the run's own evaluations

    def evaluate(self, prompts: Any = None) -> Evaluation:
        """One response per prompt, scored by the rewards: of the policy in training, the trained one, or the start.

        `prompts` as for `data`; default: all held-out prompts of `data.eval_path`. Outside a run a generator and the
        scorers are started for the purpose. Normalised rewards are measured by the moments of the training so far.
        """
        prompts = self.config.data.eval_path if prompts is None else prompts
        if prompts is None:
            raise ConfigError("evaluate: give prompts, or set data.eval_path")
        config = self._current()
        check_rewards(config.rewards, config.reducer)
        table = load_inputs(config, prompts)
        columns = sample_schema(table.schema).names
        check_reward_columns(config.rewards, columns)
        rewards = {name: section for name, section in config.rewards.items() if section.enabled}
        with self._actors(config, columns, rewards) as actors:
            return self._score(actors, table, "evaluating", None)

    def generate(self, prompts: Any, *, seed: int | None = None, **sampling: Any) -> list[str]:
        """One response per prompt, in order: of the policy in training, the trained one, or the start.

        `prompts` as for `data`. `sampling` overrides keys of the section `generation`: temperature (0: greedy), top_k,
        top_p, max_new_tokens, min_new_tokens, stop. Equal seeds (default: run.seed) give equal responses.
        """
        check_sampling(sampling)
        config = self._current()
        table = load_inputs(config, prompts, sampling.get("max_new_tokens"))
        with (
            self._actors(config, sample_schema(table.schema).names, {}) as actors,
            self.console.progress("sampling", table.num_rows) as advance,
        ):
            return sample_texts(actors, table, config.run.seed if seed is None else seed, sampling, advance)

    def _current(self) -> PPOConfig:
        """The configuration with the newest saved policy as its model, where there is one."""
        if self.actors is not None or self.resume is None:
            return self.config
        policy = RunFolder.open(self.resume).policy
        if not (policy / "config.json").is_file():
            return self.config
        # What was saved is merged, and already rounded where the base was.
        changes = {"name": str(policy), "revision": None, "tokenizer": None, "lora": None, "quantization": None}
        return self.config.model_copy(update={"model": self.config.model.model_copy(update=changes)})

    @contextmanager
    def _actors(
        self, config: PPOConfig, columns: list[str], rewards: dict[str, RewardComponent]
    ) -> Iterator[RolloutActors]:
        """Those of the run that is going on, else short-lived ones on the current policy."""
        if self.actors is not None:
            yield self.actors
            return
        with inference_actors(config, columns, rewards, self.console) as actors:
            yield actors

    def _evaluate_start(self, first: int) -> Evaluation | None:
        """The start of the run, whose answers a resumed run finds in its folder."""
        self._evaluated_after: int | None = None
        if self._held_out is None:
            return None
        stored = self.folder.evaluations / evaluation_file(0)
        if first > 0 and stored.is_file():
            before = Evaluation.read(stored)
            if before.prompts == self._held_out["prompt"].to_pylist():
                return before
        return self._evaluate_held_out("evaluating the start", first)

    def _evaluate_held_out(self, what: str, iterations: int) -> Evaluation | None:
        """Rewards of one response per held-out prompt, with the same seeds every time; into the folder and trackers."""
        self._evaluated_after = iterations
        if self._held_out is None:
            return None
        assert self.actors is not None
        evaluation = self._score(self.actors, self._held_out, what, iterations)
        evaluation.write(self.folder.evaluations / evaluation_file(iterations))
        self.session.trackers.log(iterations, evaluation.metrics())
        self.callbacks.on_evaluation(iterations, evaluation)
        return evaluation

    def _score(self, actors: RolloutActors, prompts: pa.Table, what: str, iterations: int | None) -> Evaluation:
        """`iterations`: of the run in whose quarantine failures are noted; None: nowhere."""

        def note(failures: list[RewardFailure]) -> None:
            if iterations is not None:
                append_failures(self.folder.quarantine, failures, iterations, "evaluation")

        with self.console.progress(what, prompts.num_rows) as advance:
            return Evaluation.run(
                actors.collector(), prompts, self.config, self.normalizer, progress=advance, on_failures=note
            )


def evaluation_file(iterations: int) -> str:
    """Name of the answers of the policy after so many iterations; 0 is the start."""
    return f"iteration-{iterations:06d}.parquet"
