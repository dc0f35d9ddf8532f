"""PPO from human (or any) feedback: real vLLM rollouts, scored as they stream, and proven weight syncs.

    rlhf-ray ppo --config configs/ppo.yaml model.name=Qwen/Qwen2.5-0.5B-Instruct learner.learning_rate=1e-5

    trainer = PPOTrainer("gpt2", reward=Sentiment(), lora=LoraConfig(r=8), data="prompts.jsonl")
    print(trainer.train(max_iterations=50).summary())

Clipped PPO over response tokens, with GAE (Schulman et al. 2015, 2017; Ouyang et al. 2022) or any other estimator of
`ppo.advantage`, synchronous and on-policy. `_loop` is the whole iteration, top to bottom; `ppo_actors` starts what it
calls, `rollouts` streams, `shaping` decides what is trained on, `policy_use` answers and evaluates, `build` turns
Python arguments into the configuration.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_ray import faults
from rlhf_ray.algorithms.kl import make_kl_controller
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.arithmetic import Arithmetic, ppo_arithmetic
from rlhf_ray.data.holdout import with_held_out
from rlhf_ray.data.order import cursor, draw, moved
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.report import Loaded
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.rewards.check import check_reward_columns
from rlhf_ray.rewards.compose import Composed
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.schema import sample_schema
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build import build_config, resumed_config
from rlhf_ray.trainers.callbacks import Callback, CallbackError, Callbacks, StopRequests
from rlhf_ray.trainers.callbacks_builtin import configured_callbacks
from rlhf_ray.trainers.dynamic_sampling import refill
from rlhf_ray.trainers.evaluation import show_samples
from rlhf_ray.trainers.policy_use import PolicyUse
from rlhf_ray.trainers.ppo_actors import PPOActors, check_before_start, prompt_limit
from rlhf_ray.trainers.ppo_metrics import describe_rollouts, throughput
from rlhf_ray.trainers.results import INTERRUPTED, PPOResult, compare, read_history
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.session import Session
from rlhf_ray.trainers.shaping import shape


class PPOTrainer(PolicyUse, StopRequests):
    """Trains a policy towards a reward. Everything that can be wrong is checked before any actor starts.

    Callbacks see `config`, `console`, `folder` (of the run), `total_iterations`, `request_stop` and `export_policy`;
    while the run is going on, `evaluate` and `generate` use its actors and its current policy.
    """

    total_iterations: int

    def __init__(
        self,
        model: Any = None,
        *,
        reward: Any = None,
        lora: Any = None,
        data: Any = None,
        training: Any = None,
        generation: Any = None,
        run: Any = None,
        resume: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        console: Console | None = None,
    ) -> None:
        """Either a `PPOConfig` alone, or parts of one in Python; both give the same validated `config`.

        Args:
            model: hub name or folder of a causal language model; or a `PPOConfig`, changed by the other arguments.
            reward: a `RewardComposer`, a reward model, a function f(prompt, response), sections, or a list of these.
            lora: a `LoraConfig` (ours or peft's), or a dict of its fields.
            data: path or hub name of the prompts, a list of prompts or rows, a `datasets.Dataset`, an Arrow table, or
                the section `data` (also as a dict), in whose `path` and `eval_path` any of these may stand.
            training: a `TrainingConfig`, or a dict of its fields and of dotted keys of the configuration.
            generation: the section `generation`, or a dict of its keys.
            run: the section `run`, a dict of its keys, or the run's name.
            resume: folder of an earlier run that is to go on from its last checkpoint.

        Raises:
            ConfigError: an argument, key or value is wrong; the message names it.
        """
        if model is None:
            if resume is None:
                raise ConfigError("PPOTrainer: give a model, a PPOConfig, or the folder of a run to resume")
            model = resumed_config(resume)
        self.config: PPOConfig = build_config(
            model, reward=reward, lora=lora, data=data, training=training, generation=generation, run=run
        )
        self.resume, self.console = resume, console or Console()
        self.callbacks = Callbacks([*configured_callbacks(self.config), *callbacks])
        self.kl, self.normalizer = make_kl_controller(self.config.kl), RewardNormalizer(self.config.rewards)
        self.actors: PPOActors | None = None

    # -- the run -----------------------------------------------------------------------------------------------------

    def train(self, max_iterations: int | None = None, save_every: int | None = None) -> PPOResult:
        """Run to the configured length, until a callback requests a stop, or to Ctrl-C; the policy is saved each time.

        A second call goes on where the first one ended: `max_iterations` counts from the beginning of the run.

        Args:
            max_iterations: length of the run, in place of ppo.iterations or ppo.epochs.
            save_every: iterations between two checkpoints, in place of checkpoint.every.
        """
        self._set_length(max_iterations, save_every)
        config, console = self.config, self.console
        tokenizer = check_before_start(config)
        limit = prompt_limit(config)
        load = partial(load_prompts, config.data, tokenizer, limit)
        prompts, held_out = with_held_out(load, config.data, config.run.seed)
        columns = sample_schema(prompts.table.schema).names
        check_reward_columns(config.rewards, columns)
        arithmetic = ppo_arithmetic(config, prompts.table.num_rows)
        with Session(config, "ppo", self.resume, console) as self.session:
            self.folder = self.session.folder
            self.resume = self.folder.path  # a further call goes on from here
            console.stage("PPO", config.model.name)
            self._print_facts(prompts, held_out, arithmetic)
            with console.progress("starting the actors") as advance:
                self.actors = PPOActors(self.session, config, columns, arithmetic.total_optimiser_steps or 1, advance)
            self.total_iterations, self.stop_reason = arithmetic.iterations or 0, None
            count = config.evaluation.prompts
            self._held_out = held_out.table.slice(0, count) if held_out is not None and count else None
            try:
                return self._run(prompts.table, self.actors)
            finally:
                self.actors = None

    def _run(self, prompts: pa.Table, actors: PPOActors) -> PPOResult:
        """Start, iterate, save, compare; what goes wrong is told to the callbacks."""
        try:
            self._prompts, self._metric = len(prompts), None
            first, self._attempt = self._restore(actors)
            actors.sync.publish(version=first, attempt=self._attempt)
            result = PPOResult(self.folder.policy, self.folder.path, first)
            result.history = read_history(self.folder.metrics_file, first)
            try:
                self._whole: int | None = first
                self.callbacks.on_train_start(self)
                result.before = self._evaluate_start(first)
                self._loop(result, prompts, actors)
                self._finish(result, actors)
            except CallbackError:
                self._rescue()
                raise
        except BaseException as error:
            self.callbacks.on_exception(error)
            raise
        return result

    def _loop(self, result: PPOResult, prompts: pa.Table, actors: PPOActors) -> None:
        config, session, callbacks, total = self.config, self.session, self.callbacks, self.total_iterations
        for iteration in range(result.iterations, total):
            number, started, self._whole = iteration + 1, time.monotonic(), None
            callbacks.on_iteration_start(number)
            faults.reach("draw")
            rollouts = self._collect(prompts, iteration, actors)
            callbacks.on_generation(number, rollouts)
            faults.reach("rollouts")
            composed = rollouts.compose(config, self.normalizer, update=True)
            callbacks.on_reward(number, rollouts, composed)
            faults.reach("composed")
            metrics = self._learn(rollouts, composed, iteration, actors)
            faults.reach("trained")
            sync = actors.sync.publish(version=number, attempt=self._attempt)
            faults.reach("published")
            callbacks.on_update(number, metrics)
            actors.write_rollouts(f"iteration-{number:06d}", rollouts, composed.total)

            metrics |= describe_rollouts(rollouts, composed)
            metrics |= {
                "kl/coef": self.kl.coef_at(iteration),
                "weights/version": sync.version,
                "seconds/sync": sync.seconds,
            }
            metrics["seconds/total"] = time.monotonic() - started
            metrics |= throughput(rollouts, metrics["seconds/total"])
            self.kl.update(metrics.get("kl/mean", 0.0), int(metrics["samples/trained"]), iteration)
            result.history.append(metrics)
            result.iterations = self._whole = number
            session.trackers.log(number, metrics)
            faults.reach("tracked")
            callbacks.on_iteration_end(number, metrics)

            if _due(number, config.evaluation.every) and number < total and not self._stopping:
                result.after = self._evaluate_held_out("evaluating", number)
            last = number == total or self._stopping
            if last or _due(number, config.checkpoint.every):
                self._metric = self._checkpoint_metric(result)
                self._checkpoint(number)
            for path in session.checkpoints.poll():
                callbacks.on_checkpoint(path)
            if last:
                break

    def _finish(self, result: PPOResult, actors: PPOActors) -> None:
        """Save and evaluate the policy, show what was achieved."""
        if result.iterations < self.total_iterations:
            result.stopped_because = self.stop_reason or INTERRUPTED
        with self.console.progress("saving the policy"):
            self.export_policy(self.folder.policy)
        for path in self.session.checkpoints.finish():
            self.callbacks.on_checkpoint(path)
        if self._evaluated_after != result.iterations:
            result.after = self._evaluate_held_out("evaluating the end", result.iterations)
        actors.finish_writing()
        if result.before is not None and result.after is not None:
            show_samples(self.console, result.before, result.after, self.config.evaluation.show_samples)
        self.console.summary("Result", compare(result, self.folder))
        self.callbacks.on_train_end(result)

    # -- one iteration -----------------------------------------------------------------------------------------------

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
        references = [batch.reference for batch in rollouts.batches] if actors.reference is not None else None
        what = f"iteration {iteration + 1}"
        with self.console.progress(f"{what}: training"):
            metrics, gap = actors.learner.call(what, "train_ppo", index, samples, references, step)
        metrics |= shaped.metrics() | {"samples/rounds": rollouts.rounds}
        metrics |= {"audit/mean_gap": gap.mean, "audit/max_gap": gap.max, "audit/tokens": gap.tokens}
        return dict(metrics | {"seconds/train": time.monotonic() - started})

    @property
    def _stopping(self) -> bool:
        """A callback or Ctrl-C asked for the end."""
        return self.stop_reason is not None or self.session.stop.requested

    # -- around the loop ---------------------------------------------------------------------------------------------

    def _set_length(self, max_iterations: int | None, save_every: int | None) -> None:
        changes: dict[str, Any] = {}
        if max_iterations is not None:
            changes |= {"ppo.iterations": max_iterations, "ppo.epochs": None}
        if save_every is not None:
            changes["checkpoint.every"] = save_every
        if changes:
            self.config = build_config(self.config, training=changes)

    def _restore(self, actors: PPOActors) -> tuple[int, int]:
        """(whole iterations, attempt): those of the checkpoint, or the beginning."""
        resumed = self.session.resumed
        if resumed is None:
            return 0, 0
        with self.console.progress("loading the checkpoint"):
            actors.learner.load(resumed.learner)
        self.kl.load_state_dict(resumed.state["kl"])
        self.normalizer.load_state_dict(resumed.state.get("normalizer", {}))
        self.callbacks.load_state_dict(resumed.state.get("callbacks", {}))
        if "data" in resumed.state and (why := moved(resumed.state["data"], self._cursor(resumed.step))):
            self.console.warn(why)
        self.console.note(f"resuming after iteration {resumed.step}")
        return resumed.step, resumed.state["attempt"] + 1

    def _checkpoint(self, iterations: int) -> None:
        """Begin a checkpoint; what it is to follow on disk is there first."""
        self._running().finish_writing()
        self._write_checkpoint(iterations)

    def _write_checkpoint(self, iterations: int) -> None:
        state = {
            "attempt": self._attempt,
            "kl": self.kl.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "callbacks": self.callbacks.state_dict(),
            "data": self._cursor(iterations),
        }
        self.session.write_checkpoint(iterations, state, self._running().learner, self._metric)

    def _checkpoint_metric(self, result: PPOResult) -> float | None:
        """By what checkpoints are compared: the held-out reward where that is measured regularly, else the samples'."""
        if not self.config.evaluation.every or self._held_out is None:
            return result.history[-1]["reward/mean"]
        if self._evaluated_after != result.iterations or result.after is None:
            return None
        return float(np.nanmean(result.after.reward))

    def _cursor(self, iterations: int) -> dict[str, int]:
        return cursor(self._prompts, self.config.ppo.prompts_per_iteration, iterations)

    def export_policy(self, folder: Path) -> None:
        """Save the policy that the learner of the run holds now as a Hugging Face folder."""
        self._running().learner.export(folder)

    def _rescue(self) -> None:
        """A callback raised: save the policy, and between two iterations a checkpoint, so that none of them is lost."""
        self.console.warn("a callback raised: saving the policy before the run ends")
        self.export_policy(self.folder.policy)
        if self._whole:
            self._write_checkpoint(self._whole)
        self.session.checkpoints.settle()

    def _running(self) -> PPOActors:
        if self.actors is None:
            raise ConfigError("no run is going on: this works from callbacks only")
        return self.actors

    # -- console -----------------------------------------------------------------------------------------------------

    def _print_facts(self, prompts: Loaded, held_out: Loaded | None, arithmetic: Arithmetic) -> None:
        facts = self.session.describe() | {"prompts": prompts.report.describe()}
        if held_out is not None:
            facts["held out"] = held_out.report.describe()
        self.console.facts(facts | {"batches": arithmetic.lines()})


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
