"""What `score` gives in a notebook: the rewards of a few responses, scored in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_ray.config.rewards import ReducerSection, RewardComponent
from rlhf_ray.errors import DataError
from rlhf_ray.rewards.compose import compose, enabled_components
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.outcome import CallFailure
from rlhf_ray.rewards.reducers import make_reducer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RewardScores:
    """Rewards of a batch of samples."""

    total: np.ndarray  # float64 [samples]; NaN where the sample would be dropped
    components: dict[str, np.ndarray]  # raw values, float64 [samples], NaN where there is none; `component/key` too
    failures: list[RewardFailure]  # of components that do not stop at one; sample_index is 0, prompt_id the row
    prompts: list[str] = field(repr=False)
    responses: list[str] = field(repr=False)

    def to_pandas(self) -> "pd.DataFrame":
        """One row per sample: prompt, response, each component, total."""
        import pandas as pd

        return pd.DataFrame(
            {"prompt": self.prompts, "response": self.responses, **self.components, "total": self.total}
        )


def score_term(
    sections: Mapping[str, RewardComponent],
    reducer: ReducerSection,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> RewardScores:
    """Score with every enabled component, one after the other, and compose."""
    from rlhf_ray.rewards.local import score_section

    table = {"prompt": list(prompts), "response": list(responses), **{name: list(c) for name, c in columns.items()}}
    if len({len(column) for column in table.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in table.items())
        raise DataError(f"score needs columns of one length, but got {lengths}")
    values: dict[str, np.ndarray] = {}
    failures: dict[tuple[int, str], RewardFailure] = {}
    for name in enabled_components(sections):
        outcomes = score_section(name, sections[name], table)
        values[name] = _floats([outcome.value for outcome in outcomes])
        for part in dict.fromkeys(part for outcome in outcomes for part in outcome.parts):
            values[f"{name}/{part}"] = _floats([outcome.parts.get(part) for outcome in outcomes])
        for row, outcome in enumerate(outcomes):
            if outcome.failure is not None:
                failures[row, name] = _failure(name, table, row, outcome.failure)
    composed = compose(values, failures, sections, make_reducer(reducer))
    return RewardScores(composed.total, values, list(failures.values()), table["prompt"], table["response"])


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=np.float64)  # None becomes NaN


def _failure(name: str, table: Mapping[str, Sequence[Any]], row: int, failure: CallFailure) -> RewardFailure:
    texts = table["prompt"][row], table["response"][row]
    return RewardFailure(name, row, 0, failure.kind, failure.message, failure.traceback, *texts)
