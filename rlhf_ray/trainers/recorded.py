"""An iteration's rollouts as a run recorded them, in the form in which actors give them."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rlhf_ray.errors import DataError
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.quarantine import FILE_NAME
from rlhf_ray.schema import KEY, REFERENCE, REWARD_PREFIX
from rlhf_ray.trainers.rollouts import Batch, Rollouts
from rlhf_ray.trainers.run_folder import RunFolder

REFERENCE_COLUMN = REFERENCE.names[-1]


def rollouts_file(iteration: int) -> str:
    """Name of an iteration's file in the run's folder of rollouts."""
    return f"iteration-{iteration:06d}.parquet"


def recorded_rollouts(
    run: RunFolder, iteration: int, rounds: int = 1, put: Callable[[pa.Table], ray.ObjectRef] = ray.put
) -> Rollouts:
    """All samples of an iteration, with their scores.

    Args:
        rounds: of sampling, which gave them.
        put: stores tokens and log-probs where the learner finds them.

    Raises:
        DataError: the run holds no rollouts of this iteration.
    """
    path = run.rollouts / rollouts_file(iteration)
    if not path.is_file():
        raise DataError(f"{path} is missing: iteration {iteration} can only be replayed from its prompts")
    table = pq.read_table(path)
    reference = put(table.select([*_KEY, REFERENCE_COLUMN])) if REFERENCE_COLUMN in table.column_names else None
    given = [name for name in table.column_names if name.startswith(REWARD_PREFIX)]
    scores = {name.removeprefix(REWARD_PREFIX): _numbers(table[name]) for name in given}
    samples = table.drop_columns([name for name in (*given, "reward", REFERENCE_COLUMN) if name in table.column_names])
    batch = Batch(put(samples), _meta(samples), reference, scores)
    seconds = dict.fromkeys(("generate", "score", "rollouts"), 0.0)
    missing = Counter(_unscored(samples, scores))
    return Rollouts([batch], _failures(run.quarantine / FILE_NAME, iteration, missing), seconds, rounds)


_KEY = [field.name for field in KEY]


def _meta(samples: pa.Table) -> dict[str, np.ndarray | int]:
    """The small columns that the driver keeps, as `actors.sample_table.sample_meta` makes them."""
    return {
        **{name: samples[name].to_numpy() for name in _KEY},
        "prompt_length": pc.list_value_length(samples["prompt_tokens"]).to_numpy(),
        "response_length": pc.list_value_length(samples["response_tokens"]).to_numpy(),
        "truncated": pc.equal(samples["finish_reason"], "length").to_numpy(),
        "policy_version": pc.max(samples["policy_version"]).as_py(),
    }


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [samples], null as NaN."""
    return np.asarray(column.to_numpy(), np.float64)


def _unscored(samples: pa.Table, scores: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, int]]:
    """(component, *key) of each reward that is missing."""
    keys = list(zip(*(samples[name].to_pylist() for name in _KEY), strict=True))
    for component, values in scores.items():
        for row in np.flatnonzero(np.isnan(values)):
            yield component, *keys[row]


def _failures(path: Path, iteration: int, missing: Counter[tuple[str, int, int]]) -> list[RewardFailure]:
    """Why rewards of the iteration are missing, from the run's quarantine.

    An iteration that was run again has the failures of its earlier attempts there too: the last ones count.
    """
    if not path.is_file():
        return []
    names = [field.name for field in fields(RewardFailure)]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if (line["iteration"], line["during"]) == (iteration, "training")]
    failures = []
    for line in reversed(found):
        failure = RewardFailure(**{name: line[name] for name in names})
        place = failure.component, failure.prompt_id, failure.sample_index
        if missing[place] > 0:
            missing[place] -= 1
            failures.append(failure)
    return failures[::-1]
