"""Held-out prompts, sampled with the same seeds before and after, scored by the run's own rewards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from rlhf_ray.config import PPOConfig
from rlhf_ray.tracking.console import Console, Sample
from rlhf_ray.tracking.summary import Comparison
from rlhf_ray.trainers.rollouts import RolloutCollector
from rlhf_ray.trainers.run_folder import RunFolder

#: Stands in for the iteration in the samples' seeds: no training iteration has it.
EVALUATION = -1


@dataclass(frozen=True)
class Evaluation:
    """One response per prompt, in the prompts' order; arrays [prompts]."""

    prompts: list[str]
    responses: list[str]
    reward: np.ndarray
    components: dict[str, np.ndarray]
    lengths: np.ndarray  # tokens
    truncated: np.ndarray  # bool

    @classmethod
    def run(
        cls, collector: RolloutCollector, prompts: pa.Table, config: PPOConfig, progress: Callable[..., None]
    ) -> "Evaluation":
        """Sample and score `prompts` with the policy that the generators hold."""
        rollouts = collector.collect(
            prompts, EVALUATION, config.run.seed, samples_per_prompt=1, with_reference=False, progress=progress
        )
        composed = rollouts.compose(config.rewards)
        table = pa.concat_tables(
            ray.get(batch.samples).select(["prompt_id", "prompt", "response"]) for batch in rollouts.batches
        )
        order = np.argsort(table["prompt_id"].to_numpy(), kind="stable")
        scores = {name: np.concatenate([b.scores[name] for b in rollouts.batches]) for name in composed.components}
        return cls(
            prompts=table["prompt"].take(order).to_pylist(),
            responses=table["response"].take(order).to_pylist(),
            reward=composed.total[order],
            components={name: values[order] for name, values in scores.items()},
            lengths=rollouts.column("response_length")[order],
            truncated=rollouts.column("truncated")[order],
        )

    def metrics(self) -> dict[str, float]:
        """Means for the trackers."""
        metrics = {"eval/reward": float(np.nanmean(self.reward)), "eval/length_mean": float(self.lengths.mean())}
        components = {f"eval/reward/{name}": float(np.nanmean(v)) for name, v in self.components.items()}
        return metrics | components | {"eval/truncated_fraction": float(self.truncated.mean())}


def win_rate(before: Evaluation, after: Evaluation) -> float:
    """Share of prompts on which `after` has the higher reward; a tie counts half."""
    both = ~np.isnan(before.reward) & ~np.isnan(after.reward)
    gain = after.reward[both] - before.reward[both]
    return float(((gain > 0) + 0.5 * (gain == 0)).mean())


def compare(before: Evaluation, after: Evaluation, history: list[dict[str, float]], folder: RunFolder) -> Comparison:
    """The end of a run as the console shows it."""
    rows = {"reward": (float(np.nanmean(before.reward)), float(np.nanmean(after.reward)))}
    for name in after.components:
        rows[name] = (float(np.nanmean(before.components[name])), float(np.nanmean(after.components[name])))
    rows["cut at the limit"] = (float(before.truncated.mean()), float(after.truncated.mean()))
    facts: dict[str, object] = {"held-out prompts": len(after.prompts)}
    if history and "kl/mean" in history[-1]:
        facts["KL from the reference"] = f"{history[-1]['kl/mean']:.2f} nats per response"
    paths: dict[str, str | Path] = {"policy": folder.policy, "metrics": folder.metrics_file}
    paths |= {"rollouts": folder.rollouts, "TensorBoard": folder.tensorboard, "logs": folder.logs}
    return Comparison(
        labels=("before", "after"),
        rows=rows,
        win_rate=win_rate(before, after),
        distributions={"length (tokens)": (before.lengths.tolist(), after.lengths.tolist())},
        curve=[metrics["reward/mean"] for metrics in history],
        facts=facts,
        paths=paths,
    )


def show_samples(console: Console, before: Evaluation, after: Evaluation, count: int) -> None:
    """A few prompts, spread over the set, with both responses."""
    chosen = np.linspace(0, len(after.prompts) - 1, min(count, len(after.prompts))).astype(int)
    rows: list[Sample] = []
    for i in dict.fromkeys(chosen.tolist()):
        responses: dict[str, tuple[str, Any]] = {
            "before": (before.responses[i], float(before.reward[i])),
            "after": (after.responses[i], float(after.reward[i])),
        }
        rows.append(Sample(prompt=after.prompts[i], responses=responses))
    if rows:
        console.samples(rows)
