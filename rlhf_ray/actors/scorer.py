"""Reward scorers: one component each, behind the same three methods, whatever computes it.

Plain classes, made Ray actors by `actors.runtime`. `score` takes one table at a time (a second waits); `health` answers
meanwhile, so the actor needs at least two threads.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.config.rewards import FunctionRewardSection, NeuralRewardSection
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.sandbox import CallFailure, Sandbox
from rlhf_ray.schema import reward_schema

Scored = tuple[pa.Table, list[RewardFailure]]


class _Scorer:
    """What all scorers share: a name, one thread that works, counts, and the form of the answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = OwnedThread()
        self._samples = 0
        self._failures = 0

    def health(self) -> dict[str, Any]:
        """What the scorer is doing, since how many seconds, and its counts so far."""
        return {**self._thread.health(), "samples": self._samples, "failures": self._failures}

    def _answer(self, table: pa.Table, values: Sequence[float | None], failed: dict[int, CallFailure]) -> Scored:
        """The scorer's column beside the key columns, null where it did not apply or failed."""
        keys = [table.column("prompt_id"), table.column("sample_index")]
        failures = [self._failure(table, row, failure) for row, failure in failed.items()]
        self._samples += table.num_rows
        self._failures += len(failures)
        return pa.table([*keys, pa.array(values, pa.float64())], schema=reward_schema(self.name)), failures

    def _failure(self, table: pa.Table, row: int, failure: CallFailure) -> RewardFailure:
        cell = {name: table.column(name)[row].as_py() for name in ("prompt_id", "sample_index", "prompt", "response")}
        return RewardFailure(
            component=self.name, kind=failure.kind, message=failure.message, traceback=failure.traceback, **cell
        )


class FunctionScorer(_Scorer):
    """Scores with a Python function in a sandbox."""

    def __init__(self, name: str, section: FunctionRewardSection, columns: Sequence[str]) -> None:
        """`columns`: names of the sample table's columns, which the function may ask for."""
        super().__init__(name)
        self._sandbox = Sandbox(section.function, section.arguments, columns, section.timeout_s)
        self._stop_at_first_failure = section.on_failure == "fail"

    def ready(self) -> dict[str, Any]:
        """Start the sandbox. Raises ConfigError when the function cannot be imported or called."""
        return {"component": self.name, "columns": self._thread.call("starting", self._sandbox.start)}

    def score(self, table: pa.Table) -> Scored:
        """Call the function on each row. With on_failure `fail` the rows after the first failure are left null: the run
        stops there, and need not wait for more of them.
        """
        return self._thread.call("scoring", self._score, table)

    def health(self) -> dict[str, Any]:
        return {**super().health(), "restarts": max(0, self._sandbox.starts - 1)}

    def _score(self, table: pa.Table) -> Scored:
        needed = ("prompt", "response", *self._sandbox.start())
        values: list[float | None] = [None] * table.num_rows
        failed: dict[int, CallFailure] = {}
        with contextlib.closing(self._sandbox.run({name: table.column(name).to_pylist() for name in needed})) as calls:
            for row, outcome in enumerate(calls):
                values[row] = outcome.value
                if outcome.failure is not None:
                    failed[row] = outcome.failure
                    if self._stop_at_first_failure:
                        break
        return self._answer(table, values, failed)


class NeuralScorer(_Scorer):
    """Scores with a sequence-classification model, on the actor's GPU if it has one."""

    def __init__(self, name: str, section: NeuralRewardSection, threads: int | None = None) -> None:
        """`threads`: Torch threads on CPU; default: Torch's own choice."""
        super().__init__(name)
        self._section = section
        self._threads = threads
        self._reward: Any = None

    def ready(self) -> dict[str, Any]:
        """Load the model. Raises ConfigError when it cannot be a reward model."""
        return {"component": self.name, "device": self._thread.call("loading", self._load)}

    def score(self, table: pa.Table) -> Scored:
        """Score each row; a score that is not finite is that sample's failure."""
        return self._thread.call("scoring", self._score, table)

    def _load(self) -> str:
        import torch

        from rlhf_ray.models.load import default_device
        from rlhf_ray.rewards.neural import NeuralReward

        if self._threads is not None:
            torch.set_num_threads(self._threads)  # counts for the calling thread: the one that will score
        device = default_device()
        self._reward = NeuralReward(self._section, device)
        return str(device)

    def _score(self, table: pa.Table) -> Scored:
        if self._reward is None:  # an actor that replaces a lost one is sent samples at once
            self._load()
        scores: list[float] = self._reward.score(table)
        failed = {
            row: CallFailure("not_finite", f"scored {score}; the model overflows or is damaged (try dtype: float32)")
            for row, score in enumerate(scores)
            if not math.isfinite(score)
        }
        return self._answer(table, [score if math.isfinite(score) else None for score in scores], failed)
