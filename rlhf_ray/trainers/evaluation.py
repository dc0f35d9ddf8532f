"""Held-out prompts, sampled with the same seeds before and after, scored by the run's own rewards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rlhf_ray.config import PPOConfig
from rlhf_ray.files import sync
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.schema import REWARD_PREFIX
from rlhf_ray.tracking.console import Console, Sample
from rlhf_ray.trainers.collector import RolloutCollector

if TYPE_CHECKING:
    import pandas

#: Stands in for the iteration in the samples' seeds: no training iteration has it.
EVALUATION = -1


@dataclass(frozen=True)
class Evaluation:
    """One response per prompt, in the prompts' order; arrays [prompts]. A reward that failed or is missing is NaN."""

    prompts: list[str]
    responses: list[str]
    reward: np.ndarray
    components: dict[str, np.ndarray]
    lengths: np.ndarray  # tokens
    truncated: np.ndarray  # bool

    @classmethod
    def run(
        cls,
        collector: RolloutCollector,
        prompts: pa.Table,
        config: PPOConfig,
        normalizer: RewardNormalizer,
        *,
        progress: Callable[..., None],
        on_failures: Callable[[list[RewardFailure]], object],
    ) -> "Evaluation":
        """Sample and score `prompts` with the policy that the generators hold.

        `on_failures` hears of failed rewards before `on_failure` of their component is applied.
        """
        rollouts = collector.collect(
            prompts, EVALUATION, config.run.seed, samples_per_prompt=1, with_reference=False, progress=progress
        )
        on_failures(rollouts.failures)
        composed = rollouts.compose(config, normalizer, update=False)
        table = pa.concat_tables(
            ray.get(batch.samples).select(["prompt_id", "prompt", "response"]) for batch in rollouts.batches
        )
        order = np.argsort(table["prompt_id"].to_numpy(), kind="stable")
        scores = rollouts.scores()
        return cls(
            prompts=table["prompt"].take(order).to_pylist(),
            responses=table["response"].take(order).to_pylist(),
            reward=composed.total[order],
            components={name: scores[name][order] for name in composed.components},
            lengths=rollouts.column("response_length")[order],
            truncated=rollouts.column("truncated")[order],
        )

    def means(self) -> dict[str, float]:
        """Mean of the total and of each component, over the prompts where it has a value."""
        return {"reward": mean(self.reward)} | {name: mean(values) for name, values in self.components.items()}

    def metrics(self) -> dict[str, float]:
        """Means for the trackers."""
        means = self.means()
        metrics = {"eval/reward/mean": means.pop("reward"), "eval/length_mean": float(self.lengths.mean())}
        metrics |= {f"eval/reward/{name}/mean": value for name, value in means.items()}
        return metrics | {"eval/truncated_fraction": float(self.truncated.mean())}

    # -- as a table --------------------------------------------------------------------------------------------------

    def to_table(self) -> pa.Table:
        """prompt, response, reward, reward/<component>..., length, truncated; a missing reward is null."""
        rewards = {"reward": self.reward} | {REWARD_PREFIX + name: values for name, values in self.components.items()}
        columns: dict[str, Any] = {"prompt": self.prompts, "response": self.responses}
        columns |= {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in rewards.items()}
        return pa.table(columns | {"length": self.lengths, "truncated": self.truncated})

    def to_pandas(self) -> "pandas.DataFrame":
        """The same table in pandas, one row per prompt."""
        return self.to_table().to_pandas()

    def write(self, path: Path) -> None:
        """Save as Parquet, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        pq.write_table(self.to_table(), aside)
        sync(aside)
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """What `write` saved."""
        table = pq.read_table(path)
        names = [name for name in table.column_names if name.startswith(REWARD_PREFIX)]
        column = {name: table[name].to_numpy() for name in ("reward", "length", "truncated", *names)}
        return cls(
            prompts=table["prompt"].to_pylist(),
            responses=table["response"].to_pylist(),
            reward=column["reward"],
            components={name.removeprefix(REWARD_PREFIX): column[name] for name in names},
            lengths=column["length"],
            truncated=column["truncated"],
        )


def mean(values: np.ndarray) -> float:
    """Mean of what is no NaN; NaN when nothing is."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def win_rate(before: Evaluation, after: Evaluation) -> float:
    """Share of prompts with both rewards on which `after` has the higher one; a tie counts half. NaN without any."""
    gain = after.reward - before.reward
    return mean(np.where(np.isnan(gain), np.nan, (gain > 0) + 0.5 * (gain == 0)))


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
