"""The scorer classes in this process, without Ray."""

import math
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from rlhf_ray.actors.scorer import FunctionScorer, NeuralScorer
from rlhf_ray.config.rewards import FunctionRewardSection, NeuralRewardSection
from rlhf_ray.errors import ConfigError
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


def test_neural_scores_that_are_not_finite_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scores:
        def score(self, table: pa.Table) -> list[float]:
            return [1.5, math.nan, -math.inf]

    judge = NeuralScorer("quality", NeuralRewardSection(model="unused"))
    judge._reward = Scores()
    answer, failures = judge.score(table(["a", "b", "c"]))
    assert answer.column("reward/quality").to_pylist() == [1.5, None, None]
    assert [(failure.sample_index, failure.kind) for failure in failures] == [(1, "not_finite"), (2, "not_finite")]
    assert "scored nan" in failures[0].message
