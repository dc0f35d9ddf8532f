"""What a supervised stage left behind, as numbers to work with and as text to read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_ray.tracking.summary import nearby

if TYPE_CHECKING:
    import pandas


@dataclass
class StageResult:
    """A finished stage: its metrics by step, its evaluations, and where its model lies."""

    model: Path
    folder: Path
    steps: int  # after which the model was saved
    interrupted: bool = False  # by Ctrl-C, after `steps`
    stopped_because: str | None = None  # what a callback said that requested the stop, after `steps`
    history: list[dict[str, float]] = field(default_factory=list)  # of the steps that this process ran
    before: dict[str, float] = field(default_factory=dict)  # evaluation of the start
    after: dict[str, float] = field(default_factory=dict)  # evaluation of the end

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Metric -> float64 [steps in history]; NaN where a step did not have it."""
        names = dict.fromkeys(name for metrics in self.history for name in metrics)
        return {name: np.array([metrics.get(name, np.nan) for metrics in self.history]) for name in names}

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per step, one column per metric; the index is the step, from 1."""
        import pandas

        last = self.steps + 1
        return pandas.DataFrame(self.curves, index=pandas.RangeIndex(last - len(self.history), last, name="step"))

    def summary(self) -> str:
        """The stage in a few lines; the numbers are those of the held-out rows, where there are any."""
        ended = "interrupted by Ctrl-C" if self.interrupted else self.stopped_because or "the full length"
        lines = [f"{self.steps} step{'' if self.steps == 1 else 's'}, {ended}"]
        if self.after:
            lines += ["", f"  {'held-out rows':<24}{'before':>11}{'after':>11}"]
            lines += [_row(name, self.before.get(name, np.nan), value) for name, value in self.after.items()]
        return "\n".join([*lines, "", f"  model  {nearby(self.model)}", f"  run    {nearby(self.folder)}"])


def _row(name: str, before: float, after: float) -> str:
    shown = name.removeprefix("eval/").replace("_", " ")
    return f"    {shown:<22}{before:>11.4g}{after:>11.4g}"
