"""Collecting an iteration's rollouts: every batch goes to all scorers and the reference the moment it is generated.

The driver holds references and small columns. Token data stays in the object store, between the actors.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle

from rlhf_ray.actors.calls import describe_health, result
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.config import PPOConfig
from rlhf_ray.errors import AuditError, DataError, InfrastructureError
from rlhf_ray.learner.experience import RolloutIndex
from rlhf_ray.rewards.compose import Composed, compose
from rlhf_ray.rewards.failure import RewardFailure, failures_by_row
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.reducers import make_reducer
from rlhf_ray.schema import KEY, REWARD_PREFIX

TICK_S = 5.0  # how often a wait looks at the deadlines
Progress = Callable[[int], None]


@dataclass
class Batch:
    """One streamed batch: where its tokens lie, its small columns [rows], and the answers so far."""

    samples: ray.ObjectRef
    meta: dict[str, Any]
    reference: ray.ObjectRef | None = None
    #: component, and `component/part`, -> float64 [rows], NaN = none
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray:
        """A component's or a part's values; a part that no sample of this batch had is NaN throughout."""
        return self.scores.get(name, np.full(len(self.meta["prompt_id"]), np.nan))


@dataclass
class Rollouts:
    """A whole iteration, scored."""

    batches: list[Batch]
    failures: list[RewardFailure]
    seconds: dict[str, float]
    rounds: int = 1  # of sampling

    def joined(self, later: "Rollouts") -> "Rollouts":
        """These and those of a later round, of other prompts."""
        seconds = {name: spent + later.seconds[name] for name, spent in self.seconds.items()}
        batches, failures = [*self.batches, *later.batches], [*self.failures, *later.failures]
        return Rollouts(batches, failures, seconds, self.rounds + later.rounds)

    def column(self, name: str) -> np.ndarray:
        """A small column over all batches, in arrival order."""
        return np.concatenate([batch.meta[name] for batch in self.batches])

    def scores(self) -> dict[str, np.ndarray]:
        """The values of every component and its parts, float64 [samples] in arrival order; NaN where there is none."""
        names = sorted({name for batch in self.batches for name in batch.scores})
        return {name: np.concatenate([batch.column(name) for batch in self.batches]) for name in names}

    def failed(self) -> dict[tuple[int, str], RewardFailure]:
        """The failures by (row in arrival order, component)."""
        return failures_by_row(self.failures, self.column("prompt_id"), self.column("sample_index"))

    def texts(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """(prompt, response) of the samples at `rows` in arrival order; fetches the batches that hold them."""
        ends = np.cumsum([len(batch.meta["prompt_id"]) for batch in self.batches])
        numbers = np.searchsorted(ends, rows, side="right")
        tables = {number: ray.get(self.batches[number].samples) for number in set(numbers.tolist())}
        texts = []
        for row, number in zip(rows, numbers.tolist(), strict=True):
            table = tables[number]
            place = row - int(ends[number]) + table.num_rows
            texts.append((table["prompt"][place].as_py(), table["response"][place].as_py()))
        return texts

    def check_version(self, version: int) -> None:
        """Every sample comes from the weights last published."""
        stale = sorted({batch.meta["policy_version"] for batch in self.batches} - {version})
        if stale:
            raise AuditError(
                f"samples of weights version {', '.join(map(str, stale))} came where version {version} was published: "
                "a generator missed a sync"
            )

    def compose(self, config: PPOConfig, normalizer: RewardNormalizer | None = None, update: bool = False) -> Composed:
        """The total reward of every sample in arrival order, and what is to be dropped.

        Computed in canonical order, so that no sum depends on which actor was faster. `update`: take these samples
        into the normalizer's moments.
        """
        order = self.canonical_order()
        place = np.argsort(order)  # arrival row -> canonical row
        columns = {name: values[order] for name, values in self.scores().items()}
        failed = {(int(place[row]), name): failure for (row, name), failure in self.failed().items()}
        composed = compose(columns, failed, config.rewards, make_reducer(config.reducer), normalizer, update)
        return replace(composed, total=composed.total[place], keep=composed.keep[place])

    def index(self, rewards: np.ndarray, keep: np.ndarray) -> RolloutIndex:
        """The kept samples in canonical order, for the learner."""
        sizes = [len(batch.meta["prompt_id"]) for batch in self.batches]
        columns = {
            "prompt_id": self.column("prompt_id"),
            "sample_index": self.column("sample_index"),
            "batch": np.repeat(np.arange(len(sizes)), sizes),
            "row": np.concatenate([np.arange(size) for size in sizes]),
            "prompt_length": self.column("prompt_length"),
            "response_length": self.column("response_length"),
            "reward": rewards,
        }
        order = self.canonical_order()
        order = order[keep[order]]
        if not len(order):
            raise DataError("no sample of this iteration is left: every one was dropped by its reward's failure policy")
        return RolloutIndex(**{name: column[order] for name, column in columns.items()})

    def canonical_order(self) -> np.ndarray:
        """Arrival rows sorted by (prompt_id, sample_index)."""
        return np.lexsort((self.column("sample_index"), self.column("prompt_id")))


class RolloutCollector:
    """Runs generators, scorers and the reference side by side over one stream of batches."""

    def __init__(
        self,
        generators: list[ActorHandle],
        scorers: dict[str, ActorPool],
        reference: ActorPool | None,
        samples_per_prompt: int,
        chunk_prompts: int | None,
        deadline_s: float,
    ) -> None:
        self.generators, self.scorers, self.reference = generators, scorers, reference
        self.samples_per_prompt, self.chunk_prompts, self.deadline_s = samples_per_prompt, chunk_prompts, deadline_s

    def collect(
        self,
        prompts: pa.Table,
        iteration: int,
        seed: int,
        *,
        samples_per_prompt: int | None = None,
        with_reference: bool = True,
        sampling: dict[str, Any] | None = None,
        progress: Progress = lambda samples: None,
    ) -> Rollouts:
        """Sample, score and reference all `prompts`; returns when the last answer is in. See `Generator.generate`."""
        run = _Collection(self, with_reference, progress)
        run.start(prompts, iteration, seed, samples_per_prompt or self.samples_per_prompt, sampling)
        return run.finish()


class _Collection:
    """One collection in progress: an event loop over everything that may become ready next."""

    def __init__(self, collector: RolloutCollector, with_reference: bool, progress: Progress) -> None:
        self.c, self.progress = collector, progress
        self.reference = collector.reference if with_reference else None
        self.pools = list(collector.scorers.values()) + ([self.reference] if self.reference is not None else [])
        self.streams: dict[Any, int] = {}  # generator stream -> index of its generator
        self.heard: dict[Any, float] = {}  # generator stream -> when it last yielded
        self.expected: dict[Any, ray.ObjectRef] = {}  # generator stream -> samples whose meta comes next
        self.batches: list[Batch] = []
        self.failures: list[RewardFailure] = []
        self.started = time.monotonic()
        self.seconds = {"generate": 0.0, "score": 0.0, "rollouts": 0.0}

    def start(
        self,
        prompts: pa.Table,
        iteration: int,
        seed: int,
        samples_per_prompt: int,
        sampling: dict[str, Any] | None,
    ) -> None:
        chunks = self.c.chunk_prompts
        for number, share in enumerate(self._shares(prompts)):
            if share.num_rows:
                method = self.c.generators[number].generate.options(num_returns="streaming")
                stream = method.remote(share, iteration, samples_per_prompt, seed, sampling, chunks)
                self.streams[stream], self.heard[stream] = number, self.started

    def _shares(self, prompts: pa.Table) -> list[pa.Table]:
        """Prompts dealt out in turns, whole chunks at a time where chunks must stay together."""
        count, size = len(self.c.generators), self.c.chunk_prompts or 1
        owner = (np.arange(prompts.num_rows) // size) % count
        return [prompts.take(np.flatnonzero(owner == number)) for number in range(count)]

    def finish(self) -> Rollouts:
        while self.streams or any(pool.unfinished for pool in self.pools):
            waiting = [*self.streams, *(ref for pool in self.pools for ref in pool.pending())]
            ready, _ = ray.wait(waiting, num_returns=1, timeout=TICK_S, fetch_local=False)
            for item in ready:
                if item in self.streams:
                    self._from_generator(item)
                else:
                    self._from_pool(next(pool for pool in self.pools if item in pool.pending()), item)
            self._check_deadlines()
        self.seconds["rollouts"] = time.monotonic() - self.started
        self.seconds["score"] = self.seconds["rollouts"] - self.seconds["generate"]
        return Rollouts(self.batches, self.failures, self.seconds)

    def _from_generator(self, stream: Any) -> None:
        """A stream yields samples and their meta in turn, and ends."""
        self.heard[stream] = time.monotonic()
        try:
            ref = next(stream)
        except StopIteration:
            number = self.streams.pop(stream)
            if stream in self.expected:  # the task failed: its error came in the place of samples
                result(self.expected.pop(stream), f"generator/{number}")
            self.seconds["generate"] = time.monotonic() - self.started
            return
        if stream not in self.expected:
            self.expected[stream] = ref
            return
        meta = result(ref, f"generator/{self.streams[stream]}")
        self._dispatch(Batch(self.expected.pop(stream), meta))

    def _dispatch(self, batch: Batch) -> None:
        number = len(self.batches)
        self.batches.append(batch)
        for name, pool in self.c.scorers.items():
            pool.submit((number, name), batch.samples)
        if self.reference is not None:
            self.reference.submit((number, None), batch.samples)
        self.progress(len(batch.meta["prompt_id"]))

    def _from_pool(self, pool: ActorPool, ref: ray.ObjectRef) -> None:
        done = pool.take(ref)
        if done is None:
            return
        number, component = done.key
        if component is None:
            self.batches[number].reference = done.refs[0]
            return
        table, failures = done.value
        for name in table.column_names[len(KEY) :]:
            values = table[name].to_numpy(zero_copy_only=False)
            self.batches[number].scores[name.removeprefix(REWARD_PREFIX)] = values.astype(np.float64)
        self.failures += failures

    def _check_deadlines(self) -> None:
        for pool in self.pools:
            pool.check_deadlines()
        for stream, number in self.streams.items():
            silent = time.monotonic() - self.heard[stream]
            if silent > self.c.deadline_s:
                state = describe_health(self.c.generators[number])
                raise InfrastructureError(f"generator/{number} has sent nothing for {silent:.0f} s; it is {state}")
