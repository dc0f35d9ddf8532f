"""Question files of judged benchmarks, in the forms in which they are published.

MT-Bench's `question.jsonl` (Zheng et al. 2023): {"question_id", "category", "turns": [...], "reference": [...]}, where
every turn but the last is answered before the next is asked. AlpacaEval's JSON (Li et al. 2023): {"instruction",
"output", "dataset"}, where `output` is the answer to compare with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.evaluation import QuestionsSection
from rlhf_ray.data.files import read_file
from rlhf_ray.errors import DataError
from rlhf_ray.evaluation.estimates import Estimate
from rlhf_ray.evaluation.judging import Judge, Verdicts
from rlhf_ray.evaluation.text import Measures
from rlhf_ray.rewards.judge import conversation_text

NO_REFERENCE = "(none)"


@dataclass(frozen=True)
class Question:
    """Turns of a user, and what the judge may hold the answers against."""

    turns: list[str]
    references: list[str]  # one per turn; NO_REFERENCE where the file has none
    category: str | None
    opponent: str | None = None  # the answer to compare with, where the file brings one


@dataclass(frozen=True)
class QuestionFile:
    """All questions of a file, which are of one form."""

    questions: list[Question]
    compared: bool  # with the file's own answers; else graded

    @classmethod
    def read(cls, section: QuestionsSection) -> "QuestionFile":
        """The first `max_samples` questions. Raises DataError naming the row and the field that is wrong."""
        path = Path(section.path).expanduser()
        if not path.is_file():
            raise DataError(f"questions.path: there is no file {path}")
        rows = read_file(path).slice(0, section.max_samples).to_pylist()
        form = _graded if rows and "turns" in rows[0] else _compared
        questions = [form(row, f"'{path}', question {number}") for number, row in enumerate(rows, start=1)]
        if not questions:
            raise DataError(f"'{path}' holds no questions.")
        return cls(questions, compared=form is _compared)


def judge_questions(
    judge: Judge, file: QuestionFile, replies: Sequence[Sequence[str]]
) -> tuple[Measures, Verdicts | None]:
    """The judge's word on a model's answers, one list per question, one text per turn.

    Grades are from 1 to 10, averaged over all turns, by turn and by category; or verdicts against the file's answers.
    """
    if file.compared:
        requests = [question.turns[0] for question in file.questions]
        opponents = [question.opponent or "" for question in file.questions]
        return {}, judge.compare(requests, [answers[0] for answers in replies], opponents)
    asked = [(i, turn) for i, question in enumerate(file.questions) for turn in range(len(question.turns))]
    grades = judge.grade(
        [conversation_text(conversation(file.questions[i], replies[i][:turn])) for i, turn in asked],
        [replies[i][turn] for i, turn in asked],
        [file.questions[i].references[turn] for i, turn in asked],
    )
    return _averages(grades, [turn for _, turn in asked], [file.questions[i].category for i, _ in asked]), None


def conversation(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    """The messages up to the turn that comes after `answers`."""
    messages = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def _averages(grades: np.ndarray, turns: Sequence[int], categories: Sequence[str | None]) -> Measures:
    """Mean grade over everything, by turn and by category; NaN grades are left out."""
    means: Measures = {"questions/grade": Estimate.mean(grades)}
    means |= {
        f"questions/turn_{turn + 1}": Estimate.mean(grades[np.array(turns) == turn]) for turn in sorted(set(turns))
    }
    for category in dict.fromkeys(name for name in categories if name):
        means[f"questions/{category}"] = Estimate.mean(grades[[name == category for name in categories]])
    means["questions/without_grade"] = Estimate(float(np.isnan(grades).sum()), count=len(grades))
    return means


def _graded(row: Mapping[str, Any], where: str) -> Question:
    turns, references = row.get("turns"), row.get("reference")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise DataError(f"{where}: `turns` must be a list of one or more texts, got {turns!r}.")
    known = [text or NO_REFERENCE for text in references] if isinstance(references, list) else []
    padded = [*known, *[NO_REFERENCE] * len(turns)][: len(turns)]
    return Question(turns, padded, row.get("category"))


def _compared(row: Mapping[str, Any], where: str) -> Question:
    for name in ("instruction", "output"):
        if not isinstance(row.get(name), str):
            raise DataError(
                f"{where}: needs `turns` (MT-Bench's form), or `instruction` and `output` (AlpacaEval's); it has "
                f"{', '.join(name for name, value in row.items() if value is not None) or 'nothing'}."
            )
    return Question([row["instruction"]], [NO_REFERENCE], row.get("dataset"), row["output"])
