"""PPO from human (or any) feedback: real vLLM rollouts, scored as they stream, and proven weight syncs.

    rlhf-ray ppo --config configs/ppo.yaml model.name=Qwen/Qwen2.5-0.5B-Instruct learner.learning_rate=1e-5

    trainer = PPOTrainer("gpt2", reward=Sentiment(), lora=LoraConfig(r=8), data="prompts.jsonl")
    print(trainer.train(max_iterations=50).summary())

Clipped PPO with GAE over response tokens (Schulman et al. 2015, 2017; Ouyang et al. 2022), synchronous and on-policy.
`_loop` is the whole iteration, top to bottom; `ppo_actors` starts what it calls, `rollouts` streams, `evaluation`
compares, `build` turns Python arguments into the configuration.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_ray.algorithms.kl import make_kl_controller
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.arithmetic import Arithmetic, ppo_arithmetic
from rlhf_ray.config.rewards import RewardComponent
from rlhf_ray.data.order import draw
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.report import Loaded
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.rewards.check import check_reward_columns, check_rewards
from rlhf_ray.rewards.compose import Composed
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.schema import sample_schema
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build import build_config, resumed_config
from rlhf_ray.trainers.callbacks import Callback, CallbackError, Callbacks, StopRequests
from rlhf_ray.trainers.callbacks_builtin import configured_callbacks
from rlhf_ray.trainers.evaluation import Evaluation, show_samples
from rlhf_ray.trainers.inference import check_sampling, inference_actors, load_inputs, sample_texts
from rlhf_ray.trainers.ppo_actors import PPOActors, check_before_start, prompt_limit
from rlhf_ray.trainers.ppo_metrics import describe_rollouts, throughput
from rlhf_ray.trainers.results import INTERRUPTED, PPOResult, compare, read_history
from rlhf_ray.trainers.rollout_actors import RolloutActors
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.session import Session


class PPOTrainer(StopRequests):
    """Trains a policy towards a reward. Everything that can be wrong is checked before any actor starts.

    Callbacks see `config`, `console`, `folder` (of the run), `total_iterations`, `request_stop` and `export_policy`;
    while the run is going on, `evaluate` and `generate` use its actors and its current policy.
    """

    folder: RunFolder
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
        self.actors: PPOActors | None = None  # while the run is going on

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
        prompts = load_prompts(config.data, tokenizer, limit)
        held_out = load_prompts(config.data, tokenizer, limit, config.data.eval_path) if config.data.eval_path else None
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
            rollouts = self._collect(prompts, iteration, actors)
            callbacks.on_generation(number, rollouts)
            composed = rollouts.compose(config, self.normalizer, update=True)
            callbacks.on_reward(number, rollouts, composed)
            metrics = self._learn(rollouts, composed, iteration, actors)
            sync = actors.sync.publish(version=number, attempt=self._attempt)
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
            self.kl.update(metrics.get("kl/mean", 0.0), int(composed.keep.sum()), iteration)
            result.history.append(metrics)
            result.iterations = self._whole = number
            session.trackers.log(number, metrics)
            callbacks.on_iteration_end(number, metrics)

            if _due(number, config.evaluation.every) and number < total and not self._stopping:
                result.after = self._evaluate_held_out("evaluating", number)
            last = number == total or self._stopping
            if last or _due(number, config.checkpoint.every):
                self._checkpoint(number)
            if last:
                break

    def _finish(self, result: PPOResult, actors: PPOActors) -> None:
        """Save and evaluate the policy, show what was achieved."""
        if result.iterations < self.total_iterations:
            result.stopped_because = self.stop_reason or INTERRUPTED
        with self.console.progress("saving the policy"):
            self.export_policy(self.folder.policy)
        if self._evaluated_after != result.iterations:
            result.after = self._evaluate_held_out("evaluating the end", result.iterations)
        actors.finish_writing()
        if result.before is not None and result.after is not None:
            show_samples(self.console, result.before, result.after, self.config.evaluation.show_samples)
        self.console.summary("Result", compare(result, self.folder))
        self.callbacks.on_train_end(result)

    # -- one iteration -----------------------------------------------------------------------------------------------

    def _collect(self, prompts: pa.Table, iteration: int, actors: PPOActors) -> Rollouts:
        """Draw prompts, sample responses, score them; failures go to the quarantine."""
        ppo, seed = self.config.ppo, self.config.run.seed
        rows = draw(len(prompts), ppo.prompts_per_iteration, iteration, seed, self.config.data.shuffle)
        title = f"iteration {iteration + 1} of {self.total_iterations}: sampling"
        with self.console.progress(title, len(rows) * ppo.samples_per_prompt) as advance:
            rollouts = actors.collector().collect(prompts.take(rows), iteration, seed, progress=advance)
        rollouts.check_version(iteration)
        append_failures(self.folder.quarantine, rollouts.failures, iteration + 1)
        return rollouts

    def _learn(self, rollouts: Rollouts, composed: Composed, iteration: int, actors: PPOActors) -> dict[str, float]:
        """The PPO epochs on the kept samples."""
        started = time.monotonic()
        frozen = iteration < self.config.critic.warmup_iterations
        step = PPOIteration(iteration, self.kl.coef_at(iteration), frozen)
        index = rollouts.index(self._shape(rollouts, composed), composed.keep)
        samples = [batch.samples for batch in rollouts.batches]
        references = [batch.reference for batch in rollouts.batches] if actors.reference is not None else None
        what = f"iteration {iteration + 1}"
        with self.console.progress(f"{what}: training"):
            metrics, gap = actors.learner.call(what, "train_ppo", index, samples, references, step)
        metrics |= {"audit/mean_gap": gap.mean, "audit/max_gap": gap.max, "audit/tokens": gap.tokens}
        return dict(metrics | {"seconds/train": time.monotonic() - started})

    def _shape(self, rollouts: Rollouts, composed: Composed) -> np.ndarray:
        """The rewards that the learner gets: clipped, minus a penalty where the response was cut."""
        ppo, rewards = self.config.ppo, composed.total
        if ppo.reward_clip is not None:
            rewards = np.clip(rewards, -ppo.reward_clip, ppo.reward_clip)
        return rewards - ppo.missing_eos_penalty * rollouts.column("truncated")

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
        self.console.note(f"resuming after iteration {resumed.step}")
        return resumed.step, resumed.state["attempt"] + 1

    def _checkpoint(self, iterations: int) -> None:
        self.callbacks.on_checkpoint(self._write_checkpoint(iterations))

    def _write_checkpoint(self, iterations: int) -> Path:
        state = {"attempt": self._attempt, "kl": self.kl.state_dict(), "normalizer": self.normalizer.state_dict()}
        state["callbacks"] = self.callbacks.state_dict()
        with self.console.progress("checkpoint"):
            return self.session.checkpoints.write(iterations, state, self._running().learner.save)

    def export_policy(self, folder: Path) -> None:
        """Save the policy that the learner of the run holds now as a Hugging Face folder."""
        self._running().learner.export(folder)

    def _rescue(self) -> None:
        """A callback raised: save the policy, and between two iterations a checkpoint, so that none of them is lost."""
        self.console.warn("a callback raised: saving the policy before the run ends")
        self.export_policy(self.folder.policy)
        if self._whole:
            self._write_checkpoint(self._whole)

    def _running(self) -> PPOActors:
        if self.actors is None:
            raise ConfigError("no run is going on: this works from callbacks only")
        return self.actors

    # -- evaluation --------------------------------------------------------------------------------------------------

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
        evaluation = self._score(self._running(), self._held_out, what, iterations)
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

    # -- the policy as it is now -------------------------------------------------------------------------------------

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
        changes = {"name": str(policy), "revision": None, "tokenizer": None, "lora": None}
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

    # -- console -----------------------------------------------------------------------------------------------------

    def _print_facts(self, prompts: Loaded, held_out: Loaded | None, arithmetic: Arithmetic) -> None:
        facts = self.session.describe() | {"prompts": prompts.report.describe()}
        if held_out is not None:
            facts["held out"] = held_out.report.describe()
        self.console.facts(facts | {"batches": arithmetic.lines()})


def evaluation_file(iterations: int) -> str:
    """Name of the answers of the policy after so many iterations; 0 is the start."""
    return f"iteration-{iterations:06d}.parquet"


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
