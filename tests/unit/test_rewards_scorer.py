"""The scorer classes in this process, without Ray."""

import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from rlhf_ray.actors.scorer import EndpointScorer, FunctionScorer, NeuralScorer, make_scorer
from rlhf_ray.config.rewards import (
    EnsembleRewardSection,
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    RemoteRewardSection,
    RewardComponent,
)
from rlhf_ray.errors import ConfigError, InfrastructureError
from rlhf_ray.rewards.outcome import CallFailure, Outcome
from rlhf_ray.schema import PROMPTS, reward_schema, sample_schema

pytestmark = pytest.mark.unit

SOURCE = """
import time

def judged(prompt, response, truth, response_tokens, finish_reason):
    if response == "bad": raise ValueError("boom")
    if response == "na": return None
    if response == "slow": time.sleep(1.0)
    assert finish_reason == "stop"
    return float(response == truth) + 10 * len(response_tokens)
"""
SCHEMA = sample_schema(pa.schema([*PROMPTS, pa.field("truth", pa.string())]))


def table(responses: list[str]) -> pa.Table:
    rows = [
        {
            "prompt_id": 50 + i, "sample_index": i, "policy_version": 1, "prompt": f"prompt {i}", "response": response,
            "prompt_tokens": [1], "response_tokens": [5, 6], "response_logprobs": [0.0, 0.0], "finish_reason": "stop",
            "truth": "yes",
        }
        for i, response in enumerate(responses)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions_for_scorer.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))


def scorer(on_failure: str) -> FunctionScorer:
    section = FunctionRewardSection(function="functions_for_scorer:judged", on_failure=on_failure, timeout_s=5)
    return FunctionScorer("truth_match", section, SCHEMA.names)


def test_scores_beside_the_key_null_where_missing() -> None:
    judge = scorer("skip_sample")
    assert set(judge.ready()["columns"]) == {"truth", "response_tokens", "finish_reason"}
    answer, failures = judge.score(table(["yes", "no", "bad", "na", "yes"]))
    assert answer.schema == reward_schema("truth_match")
    assert answer.column("reward/truth_match").to_pylist() == [21.0, 20.0, None, None, 21.0]
    assert answer.column("prompt_id").to_pylist() == [50, 51, 52, 53, 54]
    (failure,) = failures
    assert (failure.component, failure.prompt_id, failure.sample_index) == ("truth_match", 52, 2)
    assert (failure.kind, failure.prompt, failure.response) == ("raised", "prompt 2", "bad")
    assert "line 5, in judged" in failure.traceback
    health = judge.health()
    assert (health["state"], health["samples"], health["failures"], health["restarts"]) == ("idle", 5, 1, 0)


def test_under_the_policy_fail_the_first_failure_ends_the_scoring() -> None:
    answer, failures = scorer("fail").score(table(["yes", "bad", "bad", "yes"]))
    assert answer.column("reward/truth_match").to_pylist() == [21.0, None, None, None]
    assert [failure.sample_index for failure in failures] == [1]


def test_health_answers_during_a_call() -> None:
    judge = scorer("fail")
    judge.ready()
    thread = threading.Thread(target=judge.score, args=(table(["slow"]),))
    thread.start()
    time.sleep(0.2)
    health = judge.health()
    thread.join()
    assert health["state"] == "scoring"
    assert health["since_s"] == pytest.approx(0.2, abs=0.15)
    assert judge.health()["state"] == "idle"


def test_a_function_that_cannot_be_bound_is_a_config_error() -> None:
    section = FunctionRewardSection(function="functions_for_scorer:judged")
    with pytest.raises(ConfigError, match="needs `truth`"):
        FunctionScorer("judge", section, sample_schema(PROMPTS).names).ready()


class Scores:
    """Outcomes as any reward gives them: a part that only some rows have, a failure, a row that does not apply."""

    def score(self, table: pa.Table) -> list[Outcome]:
        overflow = CallFailure("not_finite", "scored nan")
        return [
            Outcome(value=1.5, parts={"tone": 1.0}),
            Outcome(failure=overflow),
            Outcome(parts={"facts": None}),
            Outcome(value=2.0, parts={"facts": 2.0}),
        ]


@pytest.mark.parametrize("on_failure", ["leave_out", "fail"])
def test_parts_are_columns_and_failures_are_null(on_failure: str) -> None:
    judge = NeuralScorer("quality", NeuralRewardSection(model="unused", on_failure=on_failure))
    judge._reward = Scores()
    answer, (failure,) = judge.score(table(["a", "b", "c", "d"]))
    assert (failure.prompt_id, failure.sample_index, failure.kind) == (51, 1, "not_finite")
    columns = {name: answer.column(name).to_pylist() for name in answer.column_names[2:]}
    if on_failure == "fail":  # nothing is read after the first failure
        assert answer.schema == reward_schema("quality", ["tone"])
        assert columns == {"reward/quality": [1.5, None, None, None], "reward/quality/tone": [1.0, None, None, None]}
        return
    assert answer.schema == reward_schema("quality", ["tone", "facts"])
    assert columns == {
        "reward/quality": [1.5, None, None, 2.0],
        "reward/quality/tone": [1.0, None, None, None],
        "reward/quality/facts": [None, None, None, 2.0],
    }
    assert (judge.health()["samples"], judge.health()["failures"]) == (4, 1)


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (FunctionRewardSection(function="functions_for_scorer:judged"), FunctionScorer),
        (NeuralRewardSection(model="a"), NeuralScorer),
        (EnsembleRewardSection(models=["a", "b"]), NeuralScorer),
        (RemoteRewardSection(url="http://127.0.0.1:1/score"), EndpointScorer),
        (JudgeRewardSection(base_url="http://127.0.0.1:1/v1", model="m", rubric="rubric.txt"), EndpointScorer),
    ],
)
def test_every_kind_of_component_has_its_scorer(section: RewardComponent, kind: type) -> None:
    scorer = make_scorer("component", section, SCHEMA.names, threads=1)
    assert type(scorer) is kind
    assert scorer.health()["state"] == "idle"


def test_an_endpoint_that_does_not_answer_is_found_before_any_sample() -> None:
    section = RemoteRewardSection(url="http://127.0.0.1:1/score", retries=0, deadline_s=5)
    with pytest.raises(InfrastructureError, match=r"rewards\.remote: the first request"):
        make_scorer("remote", section, SCHEMA.names).ready()
