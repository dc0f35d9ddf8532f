"""Batches of refused updates, kept in the run folder for a person to look at.

quarantine/update-000003-2-policy.parquet   iteration 3, the policy's second optimiser step: a row per sample
quarantine/updates.jsonl                    a line per refused update: its loss, gradient norm, what was wrong
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from rlhf_ray.learner.experience import Micro, RolloutIndex
from rlhf_ray.learner.group import LearnerGroup

UPDATES_FILE = "updates.jsonl"
_TOKENS, _PER_TOKEN = pa.list_(pa.int32()), pa.list_(pa.float32())


def keep_batch(folder: Path | None, record: dict[str, Any], rows: Callable[[], pa.Table], group: LearnerGroup) -> str:
    """Write the ranks' `rows` as one file and `record` (iteration, step, network, ...) as a line; a sentence on where.

    Every rank calls. A disk that takes nothing must not hide what was wrong with the update: the sentence says so then.
    """
    if folder is None:
        return "Its batch was not kept."
    name = f"update-{record['iteration']:06d}-{record['step']}-{record['network']}.parquet"
    tables = group.share(rows())

    def write() -> str:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(tables), folder / name)
            with (folder / UPDATES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite({**record, "file": name})) + "\n")
        except OSError as error:
            return f"Its batch could not be kept in {folder} ({error.strerror})."
        return f"Its batch is kept in {folder / name}."

    return group.share(write() if group.rank == 0 else "")[0]


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: such numbers as text."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def ppo_rows(micros: Sequence[Micro], index: RolloutIndex) -> pa.Table:
    """A rank's samples of a PPO minibatch: key, reward, tokens, and what is known of each token so far."""
    rows = [row for micro in micros for row in _samples(micro, index)]
    schema = pa.schema(
        [
            pa.field("prompt_id", pa.int64()),
            pa.field("sample_index", pa.int32()),
            pa.field("reward", pa.float64()),
            *(pa.field(name, _TOKENS) for name in ("prompt_tokens", "response_tokens")),
            *(pa.field(name, _PER_TOKEN) for name in _PER_TOKEN_COLUMNS),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


#: Column -> attribute of `Micro`, where PPO has come to fill it in.
_PER_TOKEN_COLUMNS = {
    "generator_logprobs": "behaviour",
    "old_logprobs": "old_logprobs",
    "reference_logprobs": "reference",
    "old_values": "old_values",
    "advantages": "advantages",
    "returns": "returns",
}


def _samples(micro: Micro, index: RolloutIndex) -> list[dict[str, Any]]:
    columns = {name: _ragged(micro, getattr(micro, attribute, None)) for name, attribute in _PER_TOKEN_COLUMNS.items()}
    ids = micro.batch.input_ids.cpu().numpy()
    rows = []
    for row, member in enumerate(micro.members):
        prompt = int(index.prompt_length[member])
        end = prompt + int(index.response_length[member])
        rows.append(
            {
                "prompt_id": int(index.prompt_id[member]),
                "sample_index": int(index.sample_index[member]),
                "reward": float(index.reward[member]),
                "prompt_tokens": ids[row, :prompt],
                "response_tokens": ids[row, prompt:end],
                **{name: values[row] for name, values in columns.items() if values is not None},
            }
        )
    return rows


def _ragged(micro: Micro, values: Tensor | None) -> list[np.ndarray] | None:
    return None if values is None else micro.batch.unpad(values)


def table_rows(table: pa.Table, rows: np.ndarray, group: LearnerGroup) -> pa.Table:
    """This rank's part of the minibatch `rows` of a table that every rank has, with a column `row`."""
    own = rows[group.rank :: group.size]
    return table.take(own).add_column(0, "row", pa.array(own, pa.int64()))
