"""Reward scorers: one component each, behind the same three methods, whatever computes it.

Plain classes, made Ray actors by `actors.runtime`. `score` takes one table at a time (a second waits); `health` answers
meanwhile, so the actor needs at least two threads.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from rlhf_ray import faults
from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.config.rewards import (
    EnsembleRewardSection,
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    RemoteRewardSection,
    RewardComponent,
    RewardSection,
)
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.judge import JudgeScorer
from rlhf_ray.rewards.outcome import CallFailure, Outcome
from rlhf_ray.rewards.remote import RemoteScorer
from rlhf_ray.rewards.sandbox import Sandbox
from rlhf_ray.schema import reward_schema

Scored = tuple[pa.Table, list[RewardFailure]]
Section = TypeVar("Section", bound=RewardSection)


class Scorer(Generic[Section]):
    """What all scorers share: a name, one thread that works, counts, and the form of the answer."""

    loading: ClassVar[str] = "starting"

    def __init__(self, name: str, section: Section, columns: Sequence[str] = (), threads: int | None = None) -> None:
        """`columns`: names of the sample table's columns; `threads`: Torch's on CPU, default: Torch's own choice."""
        self.name, self.section, self.columns, self.threads = name, section, columns, threads
        self._thread = OwnedThread()
        self._reward: Any = None  # what scores, once it is loaded
        self._samples = 0
        self._failures = 0

    def ready(self) -> dict[str, Any]:
        """Load what scores; facts about it. Raises ConfigError when it cannot."""
        return {"component": self.name, **self._thread.call(self.loading, self._load)}

    def health(self) -> dict[str, Any]:
        """What the scorer is doing, since how many seconds, and its counts so far."""
        return {**self._thread.health(), "samples": self._samples, "failures": self._failures}

    def score(self, table: pa.Table) -> Scored:
        """Score each row. With on_failure `fail` the rows after the first failure are left null: the run stops there,
        and need not wait for more of them.
        """
        return self._thread.call("scoring", self._score, table)

    def _load(self) -> dict[str, Any]:
        faults.reach("load")
        return self._open()

    def _open(self) -> dict[str, Any]:
        """Fill `_reward`; facts for `ready`."""
        raise NotImplementedError

    def _outcomes(self, table: pa.Table) -> Generator[Outcome, None, None]:
        """The outcomes of the rows, in order."""
        yield from self._reward.score(table)

    def _score(self, table: pa.Table) -> Scored:
        if self._reward is None:  # an actor that replaces a lost one is sent samples at once
            self._load()
        outcomes = [Outcome()] * table.num_rows
        with contextlib.closing(self._outcomes(table)) as stream:
            for row, outcome in enumerate(stream):
                outcomes[row] = outcome
                if outcome.failure is not None and self.section.on_failure == "fail":
                    break
        faults.reach("score")
        return self._answer(table, outcomes)

    def _answer(self, table: pa.Table, outcomes: Sequence[Outcome]) -> Scored:
        """The scorer's columns beside the key columns, null where it did not apply or failed."""
        failures = [self._failure(table, row, o.failure) for row, o in enumerate(outcomes) if o.failure is not None]
        self._samples += table.num_rows
        self._failures += len(failures)
        parts = list(dict.fromkeys(part for outcome in outcomes for part in outcome.parts))
        values = [[o.value for o in outcomes], *([o.parts.get(part) for o in outcomes] for part in parts)]
        arrays = [table.column("prompt_id"), table.column("sample_index"), *(pa.array(v, pa.float64()) for v in values)]
        return pa.table(arrays, schema=reward_schema(self.name, parts)), failures

    def _failure(self, table: pa.Table, row: int, failure: CallFailure) -> RewardFailure:
        cell = {name: table.column(name)[row].as_py() for name in ("prompt_id", "sample_index", "prompt", "response")}
        return RewardFailure(
            component=self.name, kind=failure.kind, message=failure.message, traceback=failure.traceback, **cell
        )


class FunctionScorer(Scorer[FunctionRewardSection]):
    """Scores with a Python function in a sandbox."""

    def health(self) -> dict[str, Any]:
        return {**super().health(), "restarts": max(0, self._reward.starts - 1) if self._reward is not None else 0}

    def _open(self) -> dict[str, Any]:
        self._reward = Sandbox(self.section, self.columns)
        return {"columns": self._reward.start()}

    def _outcomes(self, table: pa.Table) -> Generator[Outcome, None, None]:
        needed = ("prompt", "response", *self._reward.start())
        yield from self._reward.run({name: table.column(name).to_pylist() for name in needed})


class NeuralScorer(Scorer[NeuralRewardSection | EnsembleRewardSection]):
    """Scores with one or several sequence-classification models, on the actor's GPU if it has one."""

    loading = "loading"

    def _open(self) -> dict[str, Any]:
        import torch

        from rlhf_ray.rewards.ensemble import neural_reward

        if self.threads is not None:
            torch.set_num_threads(self.threads)  # counts for the calling thread: the one that will score
        self._reward = neural_reward(self.section)
        return {"device": str(self._reward.device)}


class EndpointScorer(Scorer[RemoteRewardSection | JudgeRewardSection]):
    """Asks a server or a judge for the scores."""

    loading = "connecting"

    def _open(self) -> dict[str, Any]:
        if isinstance(self.section, RemoteRewardSection):
            self._reward, address = RemoteScorer(self.name, self.section, self.columns), self.section.url
        else:
            self._reward, address = JudgeScorer(self.name, self.section, self.columns), self.section.base_url
        self._reward.start()
        return {"endpoint": address}


def scorer_class(section: RewardComponent) -> type[Scorer[Any]]:
    """The scorer for a kind of component; built as (name, section, columns, threads)."""
    if isinstance(section, FunctionRewardSection):
        return FunctionScorer
    if isinstance(section, NeuralRewardSection | EnsembleRewardSection):
        return NeuralScorer
    return EndpointScorer


def make_scorer(
    name: str, section: RewardComponent, columns: Sequence[str] = (), threads: int | None = None
) -> Scorer[Any]:
    """The scorer of a component in this process."""
    return scorer_class(section)(name, section, columns, threads)
