"""The reward server over its protocol: a component scored there is the component scored here."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pyarrow as pa
import pytest

from rlhf_ray.actors.scorer import make_scorer
from rlhf_ray.config.rewards import FunctionRewardSection, RemoteRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.remote import RemoteScorer
from rlhf_ray.rewards.reward_server import RewardServer

pytestmark = pytest.mark.unit

SOURCE = """
def graded(prompt, response, truth):
    if response == "bad": raise ValueError("boom")
    if response == "na": return None
    if response == "nan": return float("nan")
    if response == "both": return {"fluent": 0.5, "true": None}
    return float(response == truth["text"])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardServer]:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "functions_for_server.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        section = FunctionRewardSection(function="functions_for_server:graded", on_failure="skip_sample", timeout_s=5)
        scorer = make_scorer("graded", section, ["prompt", "response", "truth"])
        scorer.ready()
        served = RewardServer(("127.0.0.1", 0), "graded", scorer.score, ["truth"], token="s3cret")
        threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
        yield served
        served.shutdown()
        served.server_close()


def send(
    server: RewardServer, body: Any, path: str = "/score", method: str = "POST", **headers: str
) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, {"Authorization": "Bearer s3cret", **headers})
    response = connection.getresponse()
    status, answer = response.status, response.read()
    connection.close()
    return status, json.loads(answer)


def sample(response: str) -> dict[str, Any]:
    return {"prompt": "p", "response": response, "truth": {"text": "yes"}}


def test_rewards_nulls_and_errors_in_the_order_of_the_samples(server: RewardServer) -> None:
    status, answer = send(server, {"samples": [sample(r) for r in ("yes", "na", "bad", "no", "nan")]})
    assert status == 200
    right, none, error, wrong, not_finite = answer["rewards"]
    assert (right, none, wrong) == (1.0, None, 0.0)
    assert error["error"] == "it raised ValueError: boom"
    assert "in graded" in error["traceback"]
    assert "must be finite" in not_finite["error"]


def test_a_components_parts_are_served_beside_its_reward(server: RewardServer) -> None:
    _, answer = send(server, {"samples": [sample(r) for r in ("both", "yes", "bad")]})
    both, number, error = answer["rewards"]
    assert both == {"reward": 0.5, "parts": {"fluent": 0.5, "true": None}}
    assert number == {"reward": 1.0, "parts": {"fluent": None, "true": None}}
    assert list(error) == ["error", "traceback"]


def test_the_remote_scorer_gets_what_the_component_gives(server: RewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADER_TOKEN", "s3cret")
    section = RemoteRewardSection(
        url=server.url, columns=["truth"], token_env="GRADER_TOKEN", batch_size=2, on_failure="skip_sample"
    )
    remote = RemoteScorer("there", section, ["prompt", "response", "truth"])
    remote.start()
    responses = ["yes", "bad", "no", "na", "yes"]
    cells = {"prompt": ["p"] * 5, "response": responses, "truth": [{"text": "yes"}] * 5}
    outcomes = remote.score(pa.table(cells))
    remote.close()
    assert [outcome.value for outcome in outcomes] == [1.0, None, 0.0, None, 1.0]
    (failed,) = [outcome.failure for outcome in outcomes if outcome.failure]
    assert (failed.kind, failed.message) == ("raised", "answered with an error: it raised ValueError: boom")
    assert "functions_for_server.py" in failed.traceback


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"{", 400, "no JSON"),
        ({"sample": []}, 400, '"samples"'),
        ({"samples": "none"}, 400, '"samples"'),
        ({"samples": [sample("yes"), {"prompt": "p", "response": "r"}]}, 422, "samples[1] has no truth"),
        ({"samples": [{**sample("yes"), "response": 7}]}, 422, "must be strings"),
        ({"samples": ["text"]}, 422, "samples[0] has no prompt, response, truth"),
        (
            {"samples": [sample("yes"), {**sample("yes"), "truth": 3}]},
            422,
            "column truth holds values of several types",
        ),
    ],
)
def test_requests_that_cannot_be_scored_are_told_why(server: RewardServer, body: Any, status: int, why: str) -> None:
    answered, content = send(server, body)
    assert answered == status
    assert why in content["error"]


def test_wrong_tokens_paths_methods_and_sizes_are_refused(server: RewardServer) -> None:
    assert send(server, {"samples": []}) == (200, {"rewards": []})
    assert send(server, {"samples": []}, Authorization="Bearer other")[0] == 401
    assert send(server, {"samples": []}, Authorization="Bearer s3crét".encode().decode("latin-1"))[0] == 401
    assert send(server, {"samples": []}, path="/elsewhere") == (404, {"error": "POST to /score"})
    assert send(server, b"", **{"Content-Length": str(2**40)})[0] == 413
    assert send(server, b"", method="GET")[0] == 405


def test_a_scorer_that_breaks_is_a_500_and_the_server_lives(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def score(table: pa.Table) -> Any:
        calls.append(table)
        raise MemoryError("out of device memory")

    broken = RewardServer(("127.0.0.1", 0), "broken", score, [], token=None)
    threading.Thread(target=broken.serve_forever, args=(0.02,), daemon=True).start()
    for _ in range(2):
        status, answer = send(broken, {"samples": [{"prompt": "p", "response": "r"}]})
        assert (status, answer) == (500, {"error": "MemoryError: out of device memory"})
    broken.shutdown()
    broken.server_close()
    assert len(calls) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_configuration_error_while_scoring_reaches_the_asking_side() -> None:
    def score(table: pa.Table) -> Any:
        raise ConfigError("rewards.quality.model: no such folder")

    wrong = RewardServer(("127.0.0.1", 0), "wrong", score, [], token=None)
    threading.Thread(target=wrong.serve_forever, args=(0.02,), daemon=True).start()
    section = RemoteRewardSection(url=wrong.url, retries=0, on_failure="skip_sample")
    (outcome,) = RemoteScorer("there", section, ["prompt", "response"]).score(
        pa.table({"prompt": ["p"], "response": ["r"]})
    )
    wrong.shutdown()
    wrong.server_close()
    assert outcome.failure is not None
    assert "no such folder" in outcome.failure.message
