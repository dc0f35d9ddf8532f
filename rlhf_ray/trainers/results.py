"""What a PPO run left behind, as numbers to work with and as text to read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_ray.tracking.format import fit, percent, sparkline
from rlhf_ray.tracking.summary import Comparison, nearby
from rlhf_ray.trainers.callbacks_builtin.best_model import Best
from rlhf_ray.trainers.evaluation import Evaluation, win_rate
from rlhf_ray.trainers.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas

INTERRUPTED = "interrupted by Ctrl-C"
REWARD = "reward/mean"
EVALUATED = "eval/"  # how metrics of held-out rows begin, which have lines of their own

#: Widths of the summary's text, which fits 80 columns.
NAME_WIDTH, NUMBER_WIDTH = 36, 11


@dataclass
class PPOResult:
    """A finished run: its metrics by iteration, its evaluations, and where its policy lies."""

    policy: Path
    folder: Path
    iterations: int  # after which the policy was saved
    stopped_because: str | None = None  # None: the configured length was reached
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of iteration 1, 2, ...
    before: Evaluation | None = None  # the start, on held-out prompts
    after: Evaluation | None = None  # the end, on the same prompts with the same seeds

    @property
    def interrupted(self) -> bool:
        """By Ctrl-C, after `iterations`."""
        return self.stopped_because == INTERRUPTED

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Metric -> float64 [iterations]; NaN where an iteration did not have it."""
        names = dict.fromkeys(name for metrics in self.history for name in metrics)
        return {name: np.array([metrics.get(name, np.nan) for metrics in self.history]) for name in names}

    @property
    def components(self) -> dict[str, np.ndarray]:
        """Reward component (or `component/key`) -> its mean value in each iteration, float64 [iterations]."""
        curves = self.curves
        names = [name.removeprefix("reward/").removesuffix("/applied") for name in curves if name.endswith("/applied")]
        missing = np.full(len(self.history), np.nan)
        return {name: curves.get(f"reward/{name}/mean", missing) for name in names}

    @property
    def best(self) -> Best | None:
        """The iteration with the highest mean reward of its samples; None when no iteration was run."""
        rewards = self.curves.get(REWARD, np.array([]))
        if np.isnan(rewards).all():
            return None
        best = int(np.nanargmax(rewards))
        return Best(best + 1, float(rewards[best]))

    @property
    def final(self) -> dict[str, float]:
        """Metrics of the last iteration."""
        return self.history[-1] if self.history else {}

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per iteration, one column per metric."""
        import pandas

        index = pandas.RangeIndex(1, len(self.history) + 1, name="iteration")
        return pandas.DataFrame(self.curves, index=index)

    def summary(self) -> str:
        """The run in a few lines, at most 80 columns wide (paths may be longer)."""
        ended = "stopped early: " + self.stopped_because if self.stopped_because else "the full length"
        lines = [f"PPO: {self.iterations} iteration{'' if self.iterations == 1 else 's'}, {ended}"]
        lines += self._training_lines() + self._held_out_lines()
        if "kl/mean" in self.final:
            lines += ["", f"  KL from the reference: {self.final['kl/mean']:.3g} nats per response"]
        return "\n".join([*lines, "", f"  policy  {nearby(self.policy)}", f"  run     {nearby(self.folder)}"])

    def _training_lines(self) -> list[str]:
        best = self.best
        if best is None:
            return []
        rows = {"reward": self.curves[REWARD], **self.components}
        cells = {name: (curve[0], curve[best.iteration - 1], curve[-1]) for name, curve in rows.items()}
        lines = ["", *_table("training samples", ("first", "best", "final"), cells)]
        lines.append(f"  best in iteration {best.iteration}   {sparkline(self.curves[REWARD].tolist(), 40)}")
        return lines

    def _held_out_lines(self) -> list[str]:
        if self.before is None or self.after is None:
            return []
        before, after = self.before.means(), self.after.means()
        cells = {name: (before[name], after[name], after[name] - before[name]) for name in after}
        count = len(self.after.prompts)
        won = f"  better than before on {percent(win_rate(self.before, self.after))} of {count} prompts"
        return ["", *_table("held-out prompts", ("before", "after", "change"), cells), won]


def compare(result: PPOResult, folder: RunFolder) -> Comparison:
    """The end of a run as the console shows it."""
    comparison = Comparison(facts=_facts(result), paths=_paths(folder))
    if result.history:
        comparison["curve"] = result.curves[REWARD].tolist()
    if result.best is not None:
        comparison["best"] = (result.best.iteration, result.best.reward)
    if result.before is not None and result.after is not None:
        before, after = result.before, result.after
        first, last = before.means(), after.means()
        comparison["labels"] = ("before", "after")
        comparison["rows"] = {name: (first[name], last[name]) for name in last} | {
            "cut at the limit": (float(before.truncated.mean()), float(after.truncated.mean()))
        }
        comparison["win_rate"] = win_rate(before, after)
        comparison["distributions"] = {"length (tokens)": (before.lengths.tolist(), after.lengths.tolist())}
    return comparison


def _facts(result: PPOResult) -> dict[str, object]:
    facts: dict[str, object] = {"iterations": result.iterations}
    if result.stopped_because:
        facts["stopped early"] = result.stopped_because
    if result.after is not None:
        facts["held-out prompts"] = len(result.after.prompts)
    if "kl/mean" in result.final:
        facts["KL from the reference"] = f"{result.final['kl/mean']:.2f} nats per response"
    return facts


def _paths(folder: RunFolder) -> dict[str, str | Path]:
    paths: dict[str, str | Path] = {"policy": folder.policy}
    if folder.best.is_dir():
        paths["best policy"] = folder.best
    paths |= {"metrics": folder.metrics_file, "rollouts": folder.rollouts}
    return paths | {"TensorBoard": folder.tensorboard, "logs": folder.logs}


def _table(title: str, labels: tuple[str, ...], rows: Mapping[str, tuple[float, ...]]) -> list[str]:
    header = f"  {title:<{NAME_WIDTH}}" + "".join(f"{label:>{NUMBER_WIDTH}}" for label in labels)
    lines = [header]
    for position, (name, values) in enumerate(rows.items()):
        shown = name if position == 0 else f"  {name}"
        if len(shown) > NAME_WIDTH:
            shown = shown[: NAME_WIDTH - 3] + "..."
        numbers = [fit(None if np.isnan(value) else value, NUMBER_WIDTH - 2, 3) for value in values]
        cells = "".join(f"{number:>{NUMBER_WIDTH}}" for number in numbers)
        lines.append(f"  {shown:<{NAME_WIDTH}}{cells}")
    return lines


def read_history(metrics_file: Path, iterations: int) -> list[dict[str, float]]:
    """The metrics of iterations (or steps) 1 to `iterations` of a run's metrics.jsonl; what was not finite is NaN."""
    return [metrics for step, metrics in read_metrics(metrics_file).items() if step <= iterations]


def read_metrics(metrics_file: Path) -> dict[int, dict[str, float]]:
    """Iteration (or step) -> its metrics, of a run's metrics.jsonl; what was not finite is NaN.

    Evaluations, and a torn last line, are left out.
    """
    found = {}
    for line in metrics_file.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        metrics = json.loads(line)
        step = metrics.pop("step")
        if not any(name.startswith(EVALUATED) for name in metrics):
            found[step] = {name: np.nan if value is None else value for name, value in metrics.items()}
    return found
