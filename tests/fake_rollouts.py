"""Stand-ins for the actors of a collection: no engine, no model, the real methods. They die or hang once, where told.

A fault (phase, after, deed) makes the first life of an actor do the deed when it comes to the phase for the n-th time:
"die", "hang", or "lose" (say that what it was given is gone).
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import ObjectLostError

from rlhf_ray.errors import InfrastructureError
from rlhf_ray.schema import KEY

STREAMED = 3  # samples per batch
Fault = tuple[str, int, str]


class Mortal:
    """An actor that remembers in `folder` which of its lives this is."""

    def __init__(self, name: str, folder: str, fault: Fault | None = None) -> None:
        lives = Path(folder) / f"lives of {name.replace('/', '-')}"
        lives.mkdir(exist_ok=True)
        self.name, self.life = name, len(list(lives.iterdir()))
        (lives / str(self.life)).touch()
        self.fault = fault if self.life == 0 else None
        self.reached: Counter[str] = Counter()

    def ready(self) -> None:
        self.reach("ready")

    def health(self) -> dict[str, Any]:
        return {"state": "pretending", "since_s": 0.0}

    def pid(self) -> int:
        return os.getpid()

    def reach(self, phase: str) -> None:
        self.reached[phase] += 1
        if self.fault is not None and self.fault[:2] == (phase, self.reached[phase]):
            deeds: dict[str, Callable[[], None]] = {"die": self.die, "hang": self.hang, "lose": self.lose}
            deeds[self.fault[2]]()

    def die(self) -> None:
        os._exit(1)

    def hang(self) -> None:
        time.sleep(1000)

    def lose(self) -> None:
        raise ObjectLostError("00" * 28, None, "")


def token(prompt_id: int, sample_index: int) -> int:
    """What stands for the tokens of a sample."""
    return 1000 * prompt_id + sample_index


class FakeGenerator(Mortal):
    """Samples at once; the batches' meta says which life of it made them, and with which weights."""

    pause_s = 0.02  # after each batch

    def __init__(self, name: str, folder: str, fault: Fault | None = None) -> None:
        super().__init__(name, folder, fault)
        self.held, self.weights = (0, 0), "as started"  # (attempt, version) and what they are
        self.update: list[Any] | None = None
        self.asked: list[tuple[int, int]] = []  # (attempt, version) of each begun update

    def generate(
        self,
        prompts: pa.Table,
        iteration: int,
        samples_per_prompt: int,
        seed: int,
        sampling: dict[str, Any] | None,
        group_chunks: int | None,
        wanted: np.ndarray | None,
    ) -> Iterator[Any]:
        if self.update is not None:
            raise InfrastructureError("between two versions of the weights")
        places = np.argwhere(np.ones((prompts.num_rows, samples_per_prompt))) if wanted is None else wanted
        size = STREAMED if group_chunks is None else group_chunks * samples_per_prompt
        ids = prompts["prompt_id"].to_numpy()
        for start in range(0, len(places), size):
            self.reach("generate")
            rows, index = places[start : start + size].T
            prompt_id, sample_index = ids[rows], index.astype(np.int32)
            tokens = [token(p, s) for p, s in zip(prompt_id.tolist(), sample_index.tolist(), strict=True)]
            schema = pa.schema([*KEY, pa.field("token", pa.int64())])
            yield pa.table([pa.array(prompt_id), pa.array(sample_index), pa.array(tokens)], schema=schema)
            meta = {"prompt_id": prompt_id, "sample_index": sample_index, "policy_version": self.held[1]}
            yield meta | {"by": (self.name, self.life), "weights": self.weights}
            time.sleep(self.pause_s)

    def begin_update(self, version: int, attempt: int) -> None:
        self.reach("begin_update")
        self.update = []
        self.asked.append((attempt, version))

    def load_bucket(self, item: Any) -> None:
        self.reach("load_bucket")
        assert self.update is not None
        self.update.append(item)

    def finish_update(self) -> dict[str, Any]:
        self.reach("finish_update")
        assert self.update is not None
        self.weights, self.held, self.update = self.update[0], self.asked[-1], None
        attempt, version = self.held
        return {"version": version, "attempt": attempt, "digests": {"w": self.weights}, "faults": []}

    def history(self) -> list[tuple[int, int]]:
        return self.asked


class FakeScorer(Mortal):
    """The reward is the token."""

    def score(self, table: pa.Table) -> tuple[pa.Table, list[Any]]:
        self.reach("score")
        columns = [table["prompt_id"], table["sample_index"], table["token"].cast(pa.float64())]
        return pa.table(columns, schema=pa.schema([*KEY, pa.field("reward/fake", pa.float64())])), []


class FakeLearner(Mortal):
    """Its weights are a text, in several buckets."""

    weights = "untrained"

    def train(self, times: int) -> None:
        self.weights = f"trained {times} times"

    def publish(self, version: int, attempt: int, dtype: str, bucket_bytes: int) -> Iterator[Any]:
        from rlhf_ray.weights.bucket import SentReceipt

        for _ in range(6):
            self.reach("publish")
            yield self.weights
        yield SentReceipt(version, attempt, {"w": self.weights}, len(self.weights))
