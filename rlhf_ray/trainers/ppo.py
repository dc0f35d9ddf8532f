"""PPO from human (or any) feedback: real vLLM rollouts, scored as they stream, and proven weight syncs.

    rlhf-ray ppo --config configs/ppo.yaml model.name=Qwen/Qwen2.5-0.5B-Instruct learner.learning_rate=1e-5

    trainer = PPOTrainer("gpt2", reward=Sentiment(), lora=LoraConfig(r=8), data="prompts.jsonl")
    print(trainer.train(max_iterations=50).summary())

Clipped PPO over response tokens, with GAE (Schulman et al. 2015, 2017; Ouyang et al. 2022) or any other estimator of
`ppo.advantage`, synchronous and on-policy. `_loop` is the whole iteration, top to bottom; `ppo_verbs` are its verbs,
`ppo_actors` starts what they call, `rollouts` streams, `shaping` decides what is trained on, `policy_use` answers and
evaluates, `ppo_state` keeps and restores, `recovery` starts again what was lost, `build` turns Python arguments into
the configuration.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray import faults
from rlhf_ray.algorithms.kl import make_kl_controller
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.arithmetic import Arithmetic, ppo_arithmetic
from rlhf_ray.data.holdout import with_held_out
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.report import Loaded
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.check import check_reward_columns
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.schema import sample_schema
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build import build_config, resumed_config
from rlhf_ray.trainers.callbacks import Callback, CallbackError, Callbacks
from rlhf_ray.trainers.callbacks_builtin import configured_callbacks
from rlhf_ray.trainers.evaluation import show_samples
from rlhf_ray.trainers.guarding import review_updates
from rlhf_ray.trainers.policy_use import PolicyUse
from rlhf_ray.trainers.ppo_actors import PPOActors, check_before_start, prompt_limit
from rlhf_ray.trainers.ppo_metrics import describe_rollouts, throughput
from rlhf_ray.trainers.ppo_verbs import PPOVerbs
from rlhf_ray.trainers.recovery import Loss, Recovery
from rlhf_ray.trainers.results import INTERRUPTED, PPOResult, compare
from rlhf_ray.trainers.session import Session


class PPOTrainer(PPOVerbs, PolicyUse):
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
        self._columns, self._total_steps = columns, arithmetic.total_optimiser_steps or 1
        with self._open_session() as self.session:
            self.folder = self.session.folder
            self.resume = self.folder.path  # a further call goes on from here
            console.stage("PPO", config.model.name)
            self._print_facts(prompts, held_out, arithmetic)
            self.total_iterations, self.stop_reason = arithmetic.iterations or 0, None
            count = config.evaluation.prompts
            self._held_out = held_out.table.slice(0, count) if held_out is not None and count else None
            try:
                return self._run(prompts.table)
            finally:
                self.actors = None

    def _run(self, prompts: pa.Table) -> PPOResult:
        """The whole run, as often back to its last checkpoint as losses make it; errors are told to the callbacks."""
        result = PPOResult(self.folder.policy, self.folder.path, 0)
        recovery = Recovery(self.session, lambda: result.iterations)
        self._begin_state(len(prompts))
        try:
            try:
                recovery.run(lambda loss: self._go_on(result, prompts, recovery, loss))
            except CallbackError:
                self._rescue()
                raise
        except BaseException as error:
            self.callbacks.on_exception(error)
            raise
        return result

    def _go_on(self, result: PPOResult, prompts: pa.Table, recovery: Recovery, loss: Loss | None) -> None:
        """From the last checkpoint, or the beginning, to the end."""
        actors = self._ready_actors(loss)
        self._restore(result)
        self._publish(result.iterations)
        recovery.settled()
        if not self._announced:
            self._announced = True
            self.callbacks.on_train_start(self)
        if result.before is None:
            result.before = self._evaluate_start(result.iterations)
        self._loop(result, prompts, actors)
        self._finish(result, actors)

    def _ready_actors(self, loss: Loss | None) -> PPOActors:
        """All actors; after a loss those that it took along are new, the learner in any case."""
        if self.actors is not None and loss is not None and not loss.everything:
            self.actors.restart_learner()
            return self.actors
        self.actors = None
        with self.console.progress("starting the actors") as advance:
            self.actors = self._start_actors(self._columns, self._total_steps, advance)
        return self.actors

    def _open_session(self) -> Session:
        return Session(self.config, "ppo", self.resume, self.console)

    def _start_actors(self, columns: list[str], total_steps: int, progress: Callable[..., None]) -> PPOActors:
        return PPOActors(self.session, self.config, columns, total_steps, progress)

    def _loop(self, result: PPOResult, prompts: pa.Table, actors: PPOActors) -> None:
        config, session, callbacks, total = self.config, self.session, self.callbacks, self.total_iterations
        if result.iterations and self._stopping:  # asked for before a loss: the last checkpoint is the end
            return
        for iteration in range(result.iterations, total):
            number, started, self._whole, self._metric = iteration + 1, time.monotonic(), None, None
            session.failures.iteration = number
            callbacks.on_iteration_start(number)
            faults.reach("draw")
            rollouts = self._collect(prompts, iteration, actors)
            callbacks.on_generation(number, rollouts)
            faults.reach("rollouts")
            composed = rollouts.compose(config, self.normalizer, update=True)
            callbacks.on_reward(number, rollouts, composed)
            faults.reach("composed")
            metrics = self._learn(rollouts, composed, iteration, actors)
            review_updates(metrics, result.history, config.guards, session.failures)
            faults.reach("trained")
            sync = self._publish(number)
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
            metrics |= throughput(rollouts, metrics["seconds/total"]) | session.failures.metrics()
            if "kl/mean" in metrics:
                self.kl.update(metrics["kl/mean"], int(metrics["samples/trained"]), iteration)
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
            self._save_policy()
        for path in self.session.checkpoints.finish():
            self.callbacks.on_checkpoint(path)
        if self._evaluated_after != result.iterations:
            result.after = self._evaluate_held_out("evaluating the end", result.iterations)
        actors.finish_writing()
        if result.before is not None and result.after is not None:
            show_samples(self.console, result.before, result.after, self.config.evaluation.show_samples)
        self.console.summary("Result", compare(result, self.folder))
        self.callbacks.on_train_end(result)

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

    # -- console -----------------------------------------------------------------------------------------------------

    def _print_facts(self, prompts: Loaded, held_out: Loaded | None, arithmetic: Arithmetic) -> None:
        facts = self.session.describe() | {"prompts": prompts.report.describe()}
        if held_out is not None:
            facts["held out"] = held_out.report.describe()
        self.console.facts(facts | {"batches": arithmetic.lines()})


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
