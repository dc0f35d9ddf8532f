"""The judge against a real server that speaks the OpenAI form: what it is asked, and how its answers are read."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from loopback import Loopback, Reply, Request, serve

from rlhf_ray.config.rewards import JudgeRewardSection
from rlhf_ray.errors import ConfigError, InfrastructureError
from rlhf_ray.rewards.judge import JudgeScorer, Rubric, conversation_text, grade_schema, plain_grade, structured_grade
from rlhf_ray.rewards.outcome import Outcome

pytestmark = pytest.mark.unit

RUBRIC = 'Question: {prompt}\nAnswer: {response}\nTruth: {truth}\nReply as {"grade": 3}, not as {{grade}}.'
COLUMNS = ["prompt", "response", "truth"]


@pytest.fixture
def rubric(tmp_path: Path) -> str:
    path = tmp_path / "rubric.txt"
    path.write_text(RUBRIC)
    return str(path)


def judge(server: Loopback, rubric: str, columns: list[str] = COLUMNS, **options: Any) -> JudgeScorer:
    chosen = {"retries": 1, "backoff_s": 0.01, "timeout_s": 10, "on_failure": "skip_sample", **options}
    section = JudgeRewardSection(base_url=f"{server.url}/v1/", model="grader", rubric=rubric, **chosen)
    return JudgeScorer("judged", section, columns)


def table(responses: list[str], **columns: list[Any]) -> pa.Table:
    rows = len(responses)
    return pa.table({"prompt": [f"p{i}" for i in range(rows)], "response": responses, "truth": ["t"] * rows, **columns})


def completion(content: str | None, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": content}
    return Reply({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


def echo(request: Request) -> Reply:
    """Answers with the response it was sent."""
    text = request.body["messages"][0]["content"]
    return completion(text.partition("Answer: ")[2].partition("\nTruth")[0])


def failure(outcome: Outcome) -> tuple[str, str]:
    assert outcome.value is None
    assert outcome.failure is not None
    return outcome.failure.kind, outcome.failure.message


def test_grades_become_rewards_between_0_and_1(rubric: str) -> None:
    with serve(echo) as server:
        scored = judge(server, rubric, minimum=-1, maximum=3)
        outcomes = scored.score(table([f'{{"grade": {grade}}}' for grade in (-1, 0, 1, 2.5, 3)]))
    assert [outcome.value for outcome in outcomes] == [0.0, 0.25, 0.5, 0.875, 1.0]


def test_the_request_is_a_chat_completion_held_to_a_schema(rubric: str) -> None:
    with serve(lambda request: completion('{"grade": 1}')) as server:
        judge(server, rubric, max_new_tokens=7).score(table(["an answer"]))
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    text = 'Question: p0\nAnswer: an answer\nTruth: t\nReply as {"grade": 3}, not as {grade}.'
    assert request.body["messages"] == [{"role": "user", "content": text}]
    assert (request.body["model"], request.body["max_tokens"], request.body["temperature"]) == ("grader", 7, 0.0)
    assert "seed" not in request.body
    schema = request.body["response_format"]["json_schema"]
    assert (request.body["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    jsonschema.validate({"grade": 10}, schema["schema"])


def test_sampled_grades_are_a_function_of_the_sample(rubric: str) -> None:
    with serve(lambda request: completion("Grade: 1")) as server:
        scored = judge(server, rubric, temperature=0.7, structured=False, concurrency=1)
        scored.score(table(["a", "b"]))
        scored.score(table(["a"]))
    first, second, again = (request.body["seed"] for request in server.requests)
    assert first == again != second
    assert "response_format" not in server.requests[0].body


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no idea", "answered without a grade: no idea"),
        ('{"grade": "high"}', "without a grade"),
        ('{"grade": true}', "without a grade"),
        ('{"grade": NaN}', "without a grade"),
        ('{"score": 3}', "without a grade"),
        ('{"grade": 11}', "with the grade 11, outside 0 to 10"),
        ("", "without a grade: (empty)"),
        (None, "without a grade: (empty)"),
    ],
)
def test_an_answer_without_a_grade_in_the_range_is_a_failure_that_shows_it(
    rubric: str, content: str | None, said: str
) -> None:
    with serve(lambda request: completion(content)) as server:
        (outcome,) = judge(server, rubric).score(table(["r"]))
    kind, message = failure(outcome)
    assert kind == "wrong_type"
    assert said in message


def test_an_answer_that_was_cut_says_so(rubric: str) -> None:
    with serve(lambda request: completion('{"gra', "length")) as server:
        (outcome,) = judge(server, rubric, max_new_tokens=3).score(table(["r"]))
    assert "it was cut at max_new_tokens (3)" in failure(outcome)[1]


def test_an_answer_of_another_form_is_a_failure(rubric: str) -> None:
    with serve(lambda request: Reply({"text": "8"})) as server:
        (outcome,) = judge(server, rubric).score(table(["r"]))
    assert failure(outcome) == ("wrong_type", 'got an answer that is no chat completion: {"text": "8"}')


def test_a_refused_sample_leaves_the_others_alone(rubric: str) -> None:
    def refuse_long(request: Request) -> Reply:
        too_long = "word word" in request.body["messages"][0]["content"]
        return Reply({"message": "context length exceeded"}, 400) if too_long else completion('{"grade": 5}')

    with serve(refuse_long) as server:
        first, second, third = judge(server, rubric).score(table(["r", "word word", "r"]))
    assert (first.value, third.value) == (0.5, 0.5)
    kind, message = failure(second)
    assert kind == "raised"
    assert "400" in message
    assert "context length exceeded" in message


def test_a_busy_endpoint_is_asked_again(rubric: str) -> None:
    replies = iter([Reply({}, 429, {"Retry-After": "0"}), completion('{"grade": 5}')])
    with serve(lambda request: next(replies)) as server:
        (outcome,) = judge(server, rubric).score(table(["r"]))
    assert outcome.value == 0.5


def test_the_judge_reads_the_conversation_rather_than_its_rendering(rubric: str) -> None:
    messages = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], None]
    with serve(lambda request: completion('{"grade": 5}')) as server:
        judge(server, rubric, [*COLUMNS, "messages"], concurrency=1).score(table(["r", "r"], messages=messages))
    first, second = (request.body["messages"][0]["content"] for request in server.requests)
    assert first.startswith("Question: system: Be kind.\n\nuser: Hi\nAnswer: r")
    assert second.startswith("Question: p1\nAnswer: r")
    assert conversation_text([{"role": "user", "content": "Hi"}]) == "Hi"


def test_the_start_sees_that_the_model_is_there(rubric: str) -> None:
    models = Reply({"data": [{"id": "grader"}, {"id": "other"}]})
    with serve(lambda request: models) as server:
        judge(server, rubric).start()
        assert [(request.method, request.path) for request in server.requests] == [("GET", "/v1/models")]
        misnamed = JudgeRewardSection(base_url=f"{server.url}/v1", model="graded", rubric=rubric)
        with pytest.raises(ConfigError, match=r"rewards.judged.model: .* has no model `graded`. Did you mean `grader`"):
            JudgeScorer("judged", misnamed, COLUMNS).start()
    with serve(lambda request: Reply({}, 404)) as lists_nothing:
        judge(lists_nothing, rubric).start()
    with pytest.raises(InfrastructureError, match="Start the server"):
        judge(lists_nothing, rubric).start()


def test_rubrics_that_cannot_be_filled_in_are_errors_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "rubric.txt"
    with pytest.raises(ConfigError, match=r"rewards.judged.rubric: cannot read .*rubric.txt"):
        Rubric.read("rewards.judged", str(path), COLUMNS)
    path.write_text("Grade {response} by {criterion}.")
    with pytest.raises(ConfigError, match=r"has \{criterion\}, but the samples have \{prompt\}.*\{\{criterion\}\}"):
        Rubric.read("rewards.judged", str(path), COLUMNS)
    path.write_text("Grade {prompt}.")
    with pytest.raises(ConfigError, match=r"has no \{response\}"):
        Rubric.read("rewards.judged", str(path), COLUMNS)


def test_places_inside_a_response_stay_text() -> None:
    rubric = Rubric('{response} {truth} {{prompt}} {"a": {"b": 1}}')
    filled = rubric.fill({"response": "{truth} \\1", "truth": ["x"], "prompt": "secret"})
    assert filled == '{truth} \\1 ["x"] {prompt} {"a": {"b": 1}}'


@pytest.mark.parametrize(
    ("low", "high", "fits", "does_not"), [(0, 10, [0, 7, 10], [11, -1, 2.5]), (0.0, 0.5, [0.25], [0.6])]
)
def test_the_schema_allows_the_range_and_no_more(low: float, high: float, fits: list, does_not: list) -> None:
    schema = grade_schema(low, high)
    for grade in fits:
        jsonschema.validate({"grade": grade}, schema)
    for answer in [*({"grade": grade} for grade in does_not), {}, {"grade": high, "reason": ""}, high]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(answer, schema)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Grade: 7", 7.0),
        ("**Score (1-10):** 8/10", 8.0),
        ("First score: 3. On reflection, final grade: 9.5.", 9.5),
        ("I would say its rating is -2", -2.0),
        ("[[6]]", 6.0),
        (" 7/10\n", 7.0),
        ("<think>score: 3</think>\n8", 8.0),
        ("The score is from 1 to 10.", None),
        ("I give 7 of 9 points", None),
        ("Excellent!", None),
        ("", None),
    ],
)
def test_plain_text_gives_a_grade_where_it_clearly_has_one(text: str, grade: float | None) -> None:
    assert plain_grade(text) == grade


def test_json_gives_a_grade_behind_thoughts() -> None:
    assert structured_grade('<think>{"grade": 1}?</think>' + json.dumps({"grade": 4})) == 4.0
