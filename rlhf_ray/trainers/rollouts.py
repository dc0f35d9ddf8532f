"""An iteration's rollouts as the driver knows them: references and small columns.

Token data stays in the object store, between the actors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from rlhf_ray.config import PPOConfig
from rlhf_ray.errors import AuditError, DataError
from rlhf_ray.learner.experience import RolloutIndex
from rlhf_ray.rewards.compose import Composed, compose
from rlhf_ray.rewards.failure import RewardFailure, failures_by_row
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.reducers import make_reducer


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

    @property
    def references(self) -> list[ray.ObjectRef] | None:
        """The reference's log-probs of each batch; None where there is no reference."""
        found = [batch.reference for batch in self.batches if batch.reference is not None]
        return found or None

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
