"""Writes every rollout to Parquet, off the training loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rlhf_ray import faults, schema
from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.files import sync


class RolloutWriter:
    """Joins an iteration's batches with their answers and writes one file, whole or not at all."""

    def __init__(self, folder: str) -> None:
        self._thread = OwnedThread()
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def ready(self) -> None:
        """There is nothing to load."""

    def health(self) -> dict[str, Any]:
        return self._thread.health()

    def write(
        self,
        stem: str,
        samples: list[ray.ObjectRef],
        references: list[ray.ObjectRef] | None,
        columns: list[dict[str, np.ndarray]],
    ) -> str:
        """One row per sample: its batch's columns, the reference's log-probs and the driver's small columns (rewards).

        `columns` has one dict per batch, each array in the batch's row order; NaN is stored as null.
        """
        return self._thread.call(f"writing {stem}", self._write, stem, samples, references, columns)

    def _write(
        self,
        stem: str,
        samples: list[ray.ObjectRef],
        references: list[ray.ObjectRef] | None,
        columns: list[dict[str, np.ndarray]],
    ) -> str:
        tables = []
        for number, batch in enumerate(ray.get(samples)):
            table = batch
            if references is not None:
                answer = ray.get(references[number])
                table = table.append_column(schema.REFERENCE.field("reference_logprobs"), answer["reference_logprobs"])
            for name, values in columns[number].items():
                table = table.append_column(name, pa.array(values, pa.float64(), from_pandas=True))
            tables.append(table)
        path = self._folder / f"{stem}.parquet"
        aside = path.with_suffix(".tmp")
        pq.write_table(
            pa.concat_tables(tables).sort_by([("prompt_id", "ascending"), ("sample_index", "ascending")]), aside
        )
        sync(aside)  # a checkpoint that follows it must not outlive it
        faults.reach("write")
        aside.replace(path)
        return str(path)
