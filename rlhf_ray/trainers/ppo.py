"""PPO from human (or any) feedback: real vLLM rollouts, scored as they stream, and proven weight syncs.

    rlhf-ray ppo --config configs/ppo.yaml model.name=Qwen/Qwen2.5-0.5B-Instruct learner.learning_rate=1e-5

Clipped PPO with GAE over response tokens (Schulman et al. 2015, 2017; Ouyang et al. 2022), synchronous and on-policy.
`_loop` is the whole iteration, top to bottom; `ppo_actors` starts what it calls, `rollouts` streams, `evaluation`
compares.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_ray.algorithms.kl import make_kl_controller
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.arithmetic import Arithmetic, ppo_arithmetic
from rlhf_ray.data.order import draw
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.report import Loaded
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.rewards.check import check_reward_columns
from rlhf_ray.rewards.compose import Composed
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.schema import sample_schema
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callback, Callbacks
from rlhf_ray.trainers.evaluation import Evaluation, compare, show_samples
from rlhf_ray.trainers.ppo_actors import PPOActors, check_before_start, prompt_limit
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.session import Session


@dataclass
class PPOResult:
    """What a PPO run left behind."""

    policy: Path
    folder: Path
    iterations: int
    interrupted: bool = False  # by Ctrl-C, after `iterations`
    history: list[dict[str, float]] = field(default_factory=list)
    before: Evaluation | None = None  # the start, on held-out prompts
    after: Evaluation | None = None  # the end, on the same prompts with the same seeds


class PPOTrainer:
    """Runs a `PPOConfig`. Everything that can be wrong with it is checked before any actor starts."""

    def __init__(
        self,
        config: PPOConfig,
        *,
        resume: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        console: Console | None = None,
    ) -> None:
        self.config, self.resume = config, resume
        self.callbacks, self.console = Callbacks(callbacks), console or Console()
        self.kl = make_kl_controller(config.kl)

    def train(self) -> PPOResult:
        """Run to the configured length (or to Ctrl-C); the policy is saved either way."""
        config = self.config
        tokenizer = check_before_start(config)
        limit = prompt_limit(config)
        prompts = load_prompts(config.data, tokenizer, limit)
        held_out = load_prompts(config.data, tokenizer, limit, config.data.eval_path) if config.data.eval_path else None
        columns = sample_schema(prompts.table.schema).names
        check_reward_columns(config.rewards, columns)
        arithmetic = ppo_arithmetic(config, prompts.table.num_rows)
        with Session(config, "ppo", self.resume, self.console) as session:
            self.console.stage("PPO", config.model.name)
            self._print_facts(session, prompts, held_out, arithmetic)
            with self.console.progress("starting the actors") as advance:
                self.actors = PPOActors(session, config, columns, arithmetic.total_optimiser_steps or 1, advance)
            return self._loop(session, prompts.table, held_out, arithmetic.iterations or 0)

    def _loop(self, session: Session, prompts: pa.Table, held_out: Loaded | None, total: int) -> PPOResult:
        config, actors = self.config, self.actors
        result = PPOResult(session.folder.policy, session.folder.path, total)
        first, attempt = self._restore(session)
        actors.sync.publish(version=first, attempt=attempt)
        evaluation = self._eval_prompts(held_out)
        result.before = self._evaluate(evaluation, "evaluating the start")
        self.callbacks.on_train_start(self)

        for iteration in range(first, total):
            started = time.monotonic()
            rows = draw(len(prompts), config.ppo.prompts_per_iteration, iteration, config.run.seed, config.data.shuffle)
            rollouts = self._collect(prompts.take(rows), iteration, total)
            rollouts.check_version(iteration)
            append_failures(session.folder.quarantine, rollouts.failures, iteration + 1)
            composed = rollouts.compose(config)
            metrics = self._learn(rollouts, self._shape(rollouts, composed), composed.keep, iteration)
            sync = actors.sync.publish(version=iteration + 1, attempt=attempt)
            actors.write_rollouts(f"iteration-{iteration + 1:06d}", rollouts, composed.total)

            metrics |= describe_rollouts(rollouts, composed)
            metrics |= {"kl/coef": self.kl.coef, "weights/version": sync.version, "seconds/sync": sync.seconds}
            metrics["seconds/total"] = time.monotonic() - started
            metrics |= throughput(rollouts, metrics["seconds/total"])
            self.kl.update(metrics.get("kl/mean", 0.0), int(composed.keep.sum()))
            result.history.append(metrics)
            session.trackers.log(iteration + 1, metrics)
            self.console.iteration(iteration + 1, total, metrics)
            self.callbacks.on_iteration_end(iteration + 1, metrics)

            last = iteration + 1 == total or session.stop.requested
            if config.evaluation.every and (iteration + 1) % config.evaluation.every == 0 and not last:
                self._evaluate(evaluation, "evaluating", session, iteration + 1)
            if last or (config.checkpoint.every and (iteration + 1) % config.checkpoint.every == 0):
                self._checkpoint(session, iteration + 1, attempt)
            if session.stop.requested:
                result.iterations, result.interrupted = iteration + 1, True
                break

        with self.console.progress("saving the policy"):
            actors.learner.export(session.folder.policy)
        result.after = self._evaluate(evaluation, "evaluating the end", session, result.iterations)
        actors.finish_writing()
        self._summary(result, session)
        self.callbacks.on_train_end(result)
        return result

    # -- one iteration -----------------------------------------------------------------------------------------------

    def _collect(self, prompts: pa.Table, iteration: int, total: int) -> Rollouts:
        samples = prompts.num_rows * self.config.ppo.samples_per_prompt
        with self.console.progress(f"iteration {iteration + 1} of {total}: sampling", samples) as advance:
            return self.actors.collector.collect(prompts, iteration, self.config.run.seed, progress=advance)

    def _shape(self, rollouts: Rollouts, composed: Composed) -> np.ndarray:
        """The rewards that the learner gets: clipped, minus a penalty where the response was cut."""
        ppo, rewards = self.config.ppo, composed.total
        if ppo.reward_clip is not None:
            rewards = np.clip(rewards, -ppo.reward_clip, ppo.reward_clip)
        return rewards - ppo.missing_eos_penalty * rollouts.column("truncated")

    def _learn(self, rollouts: Rollouts, rewards: np.ndarray, keep: np.ndarray, iteration: int) -> dict[str, float]:
        started = time.monotonic()
        frozen = iteration < self.config.critic.warmup_iterations
        step = PPOIteration(iteration, self.kl.coef, frozen)
        samples = [batch.samples for batch in rollouts.batches]
        references = [batch.reference for batch in rollouts.batches] if self.actors.reference is not None else None
        with self.console.progress(f"iteration {iteration + 1}: training"):
            metrics, gap = self.actors.learner.call(
                f"iteration {iteration + 1}", "train_ppo", rollouts.index(rewards, keep), samples, references, step
            )
        metrics |= {"audit/mean_gap": gap.mean, "audit/max_gap": gap.max, "audit/tokens": gap.tokens}
        return metrics | {"seconds/train": time.monotonic() - started}

    # -- around the loop ---------------------------------------------------------------------------------------------

    def _restore(self, session: Session) -> tuple[int, int]:
        """(first iteration, attempt): those of the checkpoint, or the beginning."""
        if session.resumed is None:
            return 0, 0
        with self.console.progress("loading the checkpoint"):
            self.actors.learner.load(session.resumed.learner)
        self.kl.load_state_dict(session.resumed.state["kl"])
        self.console.note(f"resuming after iteration {session.resumed.step}")
        return session.resumed.step, session.resumed.state["attempt"] + 1

    def _checkpoint(self, session: Session, iteration: int, attempt: int) -> None:
        state = {"attempt": attempt, "kl": self.kl.state_dict()}
        with self.console.progress("checkpoint"):
            path = session.checkpoints.write(iteration, state, self.actors.learner.save)
        self.callbacks.on_checkpoint(path)

    def _eval_prompts(self, held_out: Loaded | None) -> pa.Table | None:
        count = self.config.evaluation.prompts
        return held_out.table.slice(0, count) if held_out is not None and count else None

    def _evaluate(
        self, prompts: pa.Table | None, what: str, session: Session | None = None, iteration: int = 0
    ) -> Evaluation | None:
        """Rewards of one response per held-out prompt, with the same seeds every time."""
        if prompts is None:
            return None
        with self.console.progress(what, prompts.num_rows) as advance:
            evaluation = Evaluation.run(self.actors.collector, prompts, self.config, advance)
        if session is not None:
            session.trackers.log(iteration, evaluation.metrics())
        return evaluation

    def _print_facts(self, session: Session, prompts: Loaded, held_out: Loaded | None, arithmetic: Arithmetic) -> None:
        facts = session.describe() | {"prompts": prompts.report.describe()}
        if held_out is not None:
            facts["held out"] = held_out.report.describe()
        self.console.facts(facts | {"batches": arithmetic.lines()})

    def _summary(self, result: PPOResult, session: Session) -> None:
        if result.before is None or result.after is None:
            return
        show_samples(self.console, result.before, result.after, self.config.evaluation.show_samples)
        self.console.summary("Result", compare(result.before, result.after, result.history, session.folder))


def describe_rollouts(rollouts: Rollouts, composed: Composed) -> dict[str, float]:
    """Rewards, components, lengths and phases of an iteration's rollouts, as metrics."""
    kept, lengths = composed.total[composed.keep], rollouts.column("response_length")
    metrics: dict[str, float] = {
        "reward/mean": float(kept.mean()),
        "reward/std": float(kept.std()),
        "reward/min": float(kept.min()),
        "reward/max": float(kept.max()),
        "reward/dropped_samples": float((~composed.keep).sum()),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated_fraction": float(rollouts.column("truncated").mean()),
    }
    for name, stats in composed.components.items():
        metrics |= {f"reward/{name}/{key}": value for key, value in stats.metrics().items()}
    return metrics | {f"seconds/{name}": seconds for name, seconds in rollouts.seconds.items()}


def throughput(rollouts: Rollouts, seconds: float) -> dict[str, float]:
    """Samples and response tokens per second of the whole iteration, and of generation alone."""
    lengths: Any = rollouts.column("response_length")
    return {
        "throughput/samples_per_s": len(lengths) / seconds,
        "throughput/response_tokens_per_s": float(lengths.sum()) / seconds,
        "throughput/generator_tokens_per_s": float(lengths.sum()) / max(rollouts.seconds["generate"], 1e-9),
    }
