"""Which samples of a collection were asked for, and which have come: each (prompt_id, sample_index) exactly once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_ray.errors import InfrastructureError

KEYS_SHOWN = 5


@dataclass(frozen=True)
class Share:
    """What one generator is asked for in one call."""

    number: int
    prompts: pa.Table
    samples: np.ndarray | None  # int64 [samples, 2]: rows of `prompts` with sample_index; None: all of every prompt


class SampleLedger:
    """`samples_per_prompt` samples of each prompt, dealt out in whole chunks of `chunk_prompts` successive prompts.

    Chunks that are dealt out whole, and come whole, are also lost and asked for again as a whole.
    """

    def __init__(self, prompts: pa.Table, samples_per_prompt: int, chunk_prompts: int | None) -> None:
        self._prompts, self._chunk = prompts, chunk_prompts or 1
        self._row = {prompt_id: row for row, prompt_id in enumerate(prompts["prompt_id"].to_pylist())}
        shape = (prompts.num_rows, samples_per_prompt)
        self._share = np.full(shape, -1)  # number of the share that a sample was asked for in last
        self._come = np.zeros(shape, bool)
        self._shares = 0

    def deal(self, generators: int) -> list[Share]:
        """All samples in one share per generator; with fewer chunks than generators, fewer shares."""
        return self._deal(np.ones_like(self._come), generators)

    def missing(self, share: int, generators: int) -> list[Share]:
        """What has not come of a share whose generator was lost, dealt out anew."""
        return self._deal((self._share == share) & ~self._come, generators)

    def again(self, meta: Mapping[str, Any], generators: int) -> list[Share]:
        """Samples that had come and are gone, dealt out anew."""
        wanted = np.zeros_like(self._come)
        wanted[self._places(meta)] = True
        self._come[wanted] = False
        return self._deal(wanted, generators)

    def receive(self, share: int, meta: Mapping[str, Any]) -> None:
        """Samples of a share have come.

        Raises:
            InfrastructureError: one of them was asked of another generator, or was here before.
        """
        places = self._places(meta)
        wrong = self._come[places] | (self._share[places] != share)
        if wrong.any():
            raise InfrastructureError(f"{self._name(meta, wrong)} came twice, or from a generator that was not asked")
        self._come[places] = True

    def check_complete(self) -> None:
        """Raise InfrastructureError, naming what is missing, unless every sample has come."""
        if not self._come.all():
            rows, samples = np.nonzero(~self._come)
            meta = {"prompt_id": self._prompts["prompt_id"].to_numpy()[rows], "sample_index": samples}
            raise InfrastructureError(f"{self._name(meta, np.ones(len(rows), bool))} never came")

    def _deal(self, wanted: np.ndarray, parts: int) -> list[Share]:
        """Shares of the `wanted` samples, bool [prompts, samples_per_prompt]: chunks in turns, in their order."""
        rows = np.flatnonzero(wanted.any(axis=1))
        turn = np.unique(rows // self._chunk, return_inverse=True)[1] % parts
        dealt = [rows[turn == part] for part in range(parts)]
        return [self._new_share(mine, wanted[mine]) for mine in dealt if len(mine)]

    def _new_share(self, rows: np.ndarray, wanted: np.ndarray) -> Share:
        number, self._shares = self._shares, self._shares + 1
        self._share[rows] = np.where(wanted, number, self._share[rows])
        return Share(number, self._prompts.take(rows), None if wanted.all() else np.argwhere(wanted))

    def _places(self, meta: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Rows and sample indices."""
        return np.array([self._row[i] for i in meta["prompt_id"].tolist()]), np.asarray(meta["sample_index"])

    @staticmethod
    def _name(meta: Mapping[str, Any], chosen: np.ndarray) -> str:
        """Some of the chosen samples, for a message."""
        keys = np.stack([meta["prompt_id"], meta["sample_index"]], axis=1)[chosen].tolist()
        shown = ", ".join(f"({prompt_id}, {sample_index})" for prompt_id, sample_index in keys[:KEYS_SHOWN])
        others = f" and {len(keys) - KEYS_SHOWN} others" if len(keys) > KEYS_SHOWN else ""
        return f"samples (prompt_id, sample_index) {shown}{others}"
