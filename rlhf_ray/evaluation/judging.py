"""A judge's verdicts: two answers held against each other in both orders, or one answer graded.

The rubrics are files like those of judge rewards (`rewards.judge`); the built-in ones follow Zheng et al. 2023
(MT-Bench), whose finding that judges favour the answer shown first is why every pair is judged twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlhf_ray.config.evaluation import JudgeSection
from rlhf_ray.rewards.judge import JudgeScorer, conversation_text
from rlhf_ray.schema import MESSAGES_COLUMN

RUBRICS = Path(__file__).parent / "rubrics"
WORST, BEST = 1.0, 10.0  # grades of a single answer


@dataclass(frozen=True)
class Verdicts:
    """What the judge said of pairs of answers."""

    gain: np.ndarray  # float64 [pairs]: 1 the first answer is better, -1 the second, 0 a tie, NaN no verdict
    swayed: int  # pairs whose verdict changed with the order in which they were shown; these are ties


class Judge:
    """One judge, asked from this process; a context manager that closes its connections."""

    def __init__(self, section: JudgeSection) -> None:
        """Reads the rubrics. Raises ConfigError for one that cannot be read or filled in, and for an absent token."""
        comparing = section.component(section.comparing or str(RUBRICS / "comparing.txt"), -1, 1)
        grading = section.component(section.grading or str(RUBRICS / "grading.txt"), WORST, BEST)
        self._comparing = JudgeScorer("judge", comparing, ["prompt", "response", "other"], "judge.comparing")
        self._grading = JudgeScorer("judge", grading, ["prompt", "response", "reference"], "judge.grading")

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._comparing.close()
        self._grading.close()

    def check(self) -> None:
        """See that the endpoint has the model. Raises ConfigError, or InfrastructureError where nothing answers."""
        self._comparing.start()

    def compare(self, requests: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Which of two answers to each request is better: the one that is preferred in both orders, else neither."""
        ahead = 2 * self._values(self._comparing, prompt=requests, response=first, other=second) - 1
        behind = 1 - 2 * self._values(self._comparing, prompt=requests, response=second, other=first)
        agreed, known = np.sign(ahead) == np.sign(behind), ~np.isnan(ahead + behind)
        gain = np.where(agreed, np.sign(ahead), 0.0)
        return Verdicts(np.where(known, gain, np.nan), int((~agreed & known).sum()))

    def grade(self, requests: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """The grade, 1 to 10, of every response, float64 [responses]; NaN where the judge gave none."""
        values = self._values(self._grading, prompt=requests, response=responses, reference=references)
        return WORST + (BEST - WORST) * values

    def _values(self, scorer: JudgeScorer, **texts: Sequence[str]) -> np.ndarray:
        """Grades on the scale from 0 to 1, float64 [rows]; NaN where there is none."""
        table = pa.table({name: pa.array(column, pa.string()) for name, column in texts.items()})
        return np.array([outcome.value for outcome in scorer.score(table)], dtype=np.float64)


def requests_of(samples: pa.Table) -> list[str]:
    """What the samples' prompts ask, as a judge should read it: the messages where they were rendered from some."""
    prompts = samples["prompt"].to_pylist()
    if MESSAGES_COLUMN not in samples.column_names:
        return prompts
    conversations = samples[MESSAGES_COLUMN].to_pylist()
    return [conversation_text(one) if one else text for one, text in zip(conversations, prompts, strict=True)]
