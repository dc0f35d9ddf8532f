"""Comparing and grading against a real server: what the judge is asked, and what its answers come to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback, Reply, Request, serve

from rlhf_ray.config.evaluation import JudgeSection, QuestionsSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.evaluation.judging import Judge
from rlhf_ray.evaluation.questions import NO_REFERENCE, QuestionFile, conversation, judge_questions

pytestmark = pytest.mark.unit


def section(server: Loopback, **options: Any) -> JudgeSection:
    return JudgeSection(base_url=f"{server.url}/v1", model="grader", retries=0, **options)


def grade(number: float | str) -> Reply:
    message = {"role": "assistant", "content": json.dumps({"grade": number})}
    return Reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def shown(request: Request, title: str) -> str:
    """The part of the judge's message under `[title]`."""
    text = request.body["messages"][0]["content"]
    return str(text.partition(f"[{title}]\n")[2].partition("\n\n[")[0].partition("\n\nGive a grade")[0])


def judging(decide: Callable[[str, str], float | str]) -> Callable[[Request], Reply]:
    return lambda request: grade(decide(shown(request, "Answer A"), shown(request, "Answer B")))


def longer(a: str, b: str) -> int:
    return int(np.sign(len(a) - len(b)))


def test_every_pair_is_judged_in_both_orders() -> None:
    with serve(judging(longer)) as server, Judge(section(server)) as judge:
        verdicts = judge.compare(["q1", "q2", "q3"], ["long answer", "s", "same"], ["short", "longer", "size"])
    assert verdicts.gain.tolist() == [1, -1, 0]
    assert verdicts.swayed == 0
    pairs = sorted((shown(r, "Request"), shown(r, "Answer A"), shown(r, "Answer B")) for r in server.requests)
    assert pairs == sorted(
        [
            ("q1", "long answer", "short"), ("q1", "short", "long answer"), ("q2", "s", "longer"),
            ("q2", "longer", "s"), ("q3", "same", "size"), ("q3", "size", "same"),
        ]
    )  # fmt: skip


def test_a_judge_that_prefers_what_comes_first_decides_nothing() -> None:
    with serve(judging(lambda a, b: 1)) as server, Judge(section(server)) as judge:
        verdicts = judge.compare(["q"] * 5, list("abcde"), list("fghij"))
    assert verdicts.gain.tolist() == [0] * 5
    assert verdicts.swayed == 5


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie() -> None:
    with serve(judging(lambda a, b: 1 if a == "first" else 0)) as server, Judge(section(server)) as judge:
        verdicts = judge.compare(["q"], ["first"], ["second"])
    assert verdicts.gain.tolist() == [0]
    assert verdicts.swayed == 1


def test_a_pair_without_two_readable_verdicts_has_none() -> None:
    def decide(a: str, b: str) -> float | str:
        return "no idea" if a == "odd" else longer(a, b)

    with serve(judging(decide)) as server, Judge(section(server)) as judge:
        verdicts = judge.compare(["q1", "q2"], ["odd", "longer"], ["other", "short"])
    assert np.isnan(verdicts.gain[0])
    assert verdicts.gain[1] == 1
    assert verdicts.swayed == 0


def test_grades_are_from_1_to_10() -> None:
    with serve(lambda request: grade(int(shown(request, "Answer")))) as server, Judge(section(server)) as judge:
        grades = judge.grade(["q"] * 4, ["1", "7", "10", "11"], ["truth"] * 4)
    np.testing.assert_allclose(grades, [1, 7, 10, np.nan])
    assert {shown(request, "Reference answer") for request in server.requests} == {"truth"}


def test_rubrics_may_be_files_of_ones_own(tmp_path: Path) -> None:
    rubric = tmp_path / "mine.txt"
    rubric.write_text("{prompt}|{response}|{other}")
    with serve(lambda request: grade(1)) as server, Judge(section(server, comparing=str(rubric))) as judge:
        judge.compare(["q"], ["a"], ["b"])
    assert {r.body["messages"][0]["content"] for r in server.requests} == {"q|a|b", "q|b|a"}


def test_a_rubric_that_cannot_be_filled_in_is_named_by_its_key(tmp_path: Path) -> None:
    rubric = tmp_path / "mine.txt"
    rubric.write_text("{prompt} {response} {answer}")
    judge = JudgeSection(base_url="http://localhost:1/v1", model="m", comparing=str(rubric))
    with pytest.raises(ConfigError, match=r"judge\.comparing.*\{answer\}"):
        Judge(judge)


# --- question files


MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Now in French."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And times 3?"], "reference": ["2", "6"]},
    {"question_id": 7, "category": "math", "turns": ["2 + 2?"], "reference": ["4"]},
]
ALPACA = [
    {"instruction": "Say hi.", "output": "Hi!", "generator": "text_davinci_003", "dataset": "helpful_base"},
    {"instruction": "Say no.", "output": "No, thank you very much.", "dataset": "koala"},
]


def mt_bench(folder: Path, **options: Any) -> QuestionFile:
    path = folder / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MT_BENCH))
    return QuestionFile.read(QuestionsSection(path=str(path), **options))


def alpaca(folder: Path) -> QuestionFile:
    path = folder / "alpaca_eval.json"
    path.write_text(json.dumps(ALPACA))
    return QuestionFile.read(QuestionsSection(path=str(path)))


def test_mt_bench_questions_have_turns_and_references(tmp_path: Path) -> None:
    file = mt_bench(tmp_path)
    assert not file.compared
    assert [question.turns for question in file.questions] == [row["turns"] for row in MT_BENCH]
    assert [question.references for question in file.questions] == [[NO_REFERENCE] * 2, ["2", "6"], ["4"]]
    assert [question.category for question in file.questions] == ["writing", "math", "math"]
    assert len(mt_bench(tmp_path, max_samples=2).questions) == 2


def test_a_later_turn_comes_with_all_that_was_said(tmp_path: Path) -> None:
    question = mt_bench(tmp_path).questions[1]
    assert conversation(question, []) == [{"role": "user", "content": "1 + 1?"}]
    assert conversation(question, ["2"]) == [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And times 3?"},
    ]


def test_grades_are_averaged_by_turn_and_category(tmp_path: Path) -> None:
    def decide(request: Request) -> Reply:
        return grade({"poem": 9, "poème": "?", "2": 10, "6": 5, "five": 1}[shown(request, "Answer")])

    file = mt_bench(tmp_path)
    with serve(decide) as server, Judge(section(server)) as judge:
        measures, against = judge_questions(judge, file, [["poem", "poème"], ["2", "6"], ["five"]])
    assert against is None
    values = {name: estimate.value for name, estimate in measures.items() if estimate}
    assert values["questions/grade"] == pytest.approx((9 + 10 + 5 + 1) / 4)
    assert values["questions/turn_1"] == pytest.approx((9 + 10 + 1) / 3)
    assert values["questions/turn_2"] == pytest.approx(5)
    assert values["questions/writing"] == pytest.approx(9)
    assert values["questions/math"] == pytest.approx(16 / 3)
    assert values["questions/without_grade"] == 1
    conversations = {shown(request, "Conversation") for request in server.requests}
    assert "user: 1 + 1?\n\nassistant: 2\n\nuser: And times 3?" in {c.replace("\n\n\n", "\n\n") for c in conversations}


def test_alpaca_questions_are_held_against_the_files_answers(tmp_path: Path) -> None:
    file = alpaca(tmp_path)
    assert file.compared
    with serve(judging(longer)) as server, Judge(section(server)) as judge:
        measures, verdicts = judge_questions(judge, file, [["Hello there!"], ["No."]])
    assert measures == {}
    assert verdicts is not None
    assert verdicts.gain.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"turns": []}, r"question 1: `turns` must be a list of one or more texts"),
        ({"turns": ["a", ""]}, r"`turns` must be"),
        ({"instruction": "a"}, r"question 1: needs `turns` .* or `instruction` and `output`.*it has instruction"),
    ],
)
def test_a_question_of_another_form_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(DataError, match=said):
        QuestionFile.read(QuestionsSection(path=str(path)))


def test_an_absent_file_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions\.path: there is no file"):
        QuestionFile.read(QuestionsSection(path=str(tmp_path / "none.jsonl")))
