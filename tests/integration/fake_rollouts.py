"""Stand-ins for the actors of a collection: no engine, no model, the real methods. They die or hang once, where told.

A fault is {"at": <phase>, "after": n, "do": "die" or "hang"}: the first life of that actor does it when it comes to the
phase for the n-th time.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import ObjectLostError

from rlhf_ray.errors import InfrastructureError
from rlhf_ray.schema import KEY
from rlhf_ray.weights.bucket import SentReceipt

STREAMED = 3  # samples per batch


class Mortal:
    """An actor that remembers in `folder` which of its lives this is."""

    def __init__(self, name: str, folder: str, fault: dict[str, Any] | None = None) -> None:
        lives = Path(folder) / f"lives of {name.replace('/', '-')}"
        lives.mkdir(exist_ok=True)
        self.life = len(list(lives.iterdir()))
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
        if self.fault and (self.fault["at"], self.fault.get("after", 1)) == (phase, self.reached[phase]):
            if self.fault["do"] == "die":
                os._exit(1)
            time.sleep(1000)


def token(prompt_id: int, sample_index: int) -> int:
    """What stands for the tokens of a sample."""
    return 1000 * prompt_id + sample_index


class FakeGenerator(Mortal):
    """Samples at once; the batches' meta says which life of it made them, and with which weights."""

    def __init__(self, name: str, folder: str, fault: dict[str, Any] | None = None) -> None:
        super().__init__(name, folder, fault)
        self.name, self.weights, self.update = name, ((0, 0), "as started"), None
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
            keys = [pa.array(prompt_id), pa.array(sample_index)]
            yield pa.table([*keys, pa.array(tokens)], schema=pa.schema([*KEY, pa.field("token", pa.int64())]))
            meta = {"prompt_id": prompt_id, "sample_index": sample_index, "policy_version": self.weights[0][1]}
            yield meta | {"by": (self.name, self.life), "weights": self.weights[1]}
            time.sleep(0.02)

    def begin_update(self, version: int, attempt: int) -> None:
        self.reach("begin_update")
        self.update = ((attempt, version), [])
        self.asked.append((attempt, version))

    def load_bucket(self, item: Any) -> None:
        self.reach("load_bucket")
        assert self.update is not None
        self.update[1].append(item)

    def finish_update(self) -> dict[str, Any]:
        self.reach("finish_update")
        assert self.update is not None
        (attempt, version), items = self.update
        self.weights, self.update = (self.update[0], items[-1].digests["w"]), None
        return {"version": version, "attempt": attempt, "digests": {"w": items[0]}, "faults": []}

    def history(self) -> list[tuple[int, int]]:
        return self.asked


class FakeScorer(Mortal):
    """The reward is the token; with the fault `lose` it says once that its samples are gone."""

    def score(self, table: pa.Table) -> tuple[pa.Table, list[Any]]:
        self.reach("score")
        if self.fault and self.fault["at"] == "lose" and self.reached["score"] == self.fault["after"]:
            raise ObjectLostError("00" * 28, None, "")
        keys = [table["prompt_id"], table["sample_index"]]
        schema = pa.schema([*KEY, pa.field("reward/fake", pa.float64())])
        return pa.table([*keys, table["token"].cast(pa.float64())], schema=schema), []


class FakeLearner(Mortal):
    """Its weights are a text."""

    def __init__(self, name: str, folder: str, fault: dict[str, Any] | None = None) -> None:
        super().__init__(name, folder, fault)
        self.weights = "trained 0 times"

    def train(self, times: int) -> None:
        self.weights = f"trained {times} times"

    def publish(self, version: int, attempt: int, dtype: str, bucket_bytes: int) -> Iterator[Any]:
        for _ in range(6):
            self.reach("publish")
            yield self.weights
        yield SentReceipt(version, attempt, {"w": self.weights}, len(self.weights))
