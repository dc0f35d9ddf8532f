"""The fault matrix: every kind of component x every way to fail x every policy, through scorers and composition.

Each cell scores four samples, of which the second meets the fault, beside a component that works. Expected is: the
sample's failure by name and nothing else, its value missing and never 0, the others scored, the total as the policy
says, and the counters to match. What a kind cannot do is listed with the reason.
(A whole run with several: test_ppo_runs.)
"""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from faulty_rewards import LATE_S, TIMEOUT_S, WELL
from tiny_models import tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_ray.actors.scorer import make_scorer
from rlhf_ray.config.rewards import (
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    RemoteRewardSection,
    RewardComponent,
)
from rlhf_ray.errors import DataError
from rlhf_ray.rewards.compose import compose
from rlhf_ray.rewards.failure import RewardFailure, failures_by_row
from rlhf_ray.schema import SAMPLES, reward_schema

pytestmark = pytest.mark.integration

KINDS = ["function", "async", "batch", "method", "neural", "remote", "judge"]
FAULTS = {
    "raises": "raised",
    "nan": "not_finite",
    "none": None,  # does not apply: no failure
    "wrong_type": "wrong_type",
    "loop": "timeout",
    "gil": "timeout",
    "dies": "died",
    "late": "timeout",
}
POLICIES = ["fail", "skip_sample", "leave_out"]
OTHERWISE = {("judge", "nan"): "wrong_type"}  # JSON with NaN for a grade holds no grade

_NEVER_RETURNS = "a forward pass runs in the actor itself; one that never ends is ended by the pool (test_pool)"
_NOT_OURS = "whose lock another machine's process holds cannot be seen from here: the same as `loop`"
IMPOSSIBLE = {
    ("neural", "none"): "a model has a score for every text",
    ("neural", "wrong_type"): "a model's output is a tensor of numbers",
    ("neural", "loop"): _NEVER_RETURNS,
    ("neural", "gil"): _NEVER_RETURNS,
    ("neural", "dies"): "takes the actor along: lost actors are replaced and their samples scored again (test_pool)",
    ("remote", "gil"): _NOT_OURS,
    ("judge", "gil"): _NOT_OURS,
    ("judge", "none"): "a judge is asked for a grade; what holds none is an error",
}
CELLS = [(kind, fault) for kind in KINDS for fault in FAULTS if (kind, fault) not in IMPOSSIBLE]
WEIGHT, STEADY_WEIGHT = 3.0, 1.0
BAD = 1  # the row that meets the fault


@dataclass(frozen=True)
class Answer:
    """What a scorer gave for one cell, and what its counters rose by."""

    values: np.ndarray  # float64 [4], NaN where missing
    failures: list[RewardFailure]
    counted: tuple[int, int]  # samples, failures


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("kind", "fault"), CELLS)
def test_cell(kind: str, fault: str, policy: str, answers: "Answers") -> None:
    answer = answers(kind, fault, policy)
    expected = OTHERWISE.get((kind, fault), FAULTS[fault])
    assert np.isnan(answer.values[BAD]), "missing, not a number"
    found = [(failure.prompt_id, failure.kind) for failure in answer.failures]
    assert found == ([] if expected is None else [(BAD, expected)])
    assert answer.counted == (4, len(found))
    well = [0, 2, 3]
    if policy == "fail" and expected:  # the run stops there: later samples, and requests still open, are given up
        well = [] if kind in ("remote", "judge") else [0]
    assert np.isfinite(answer.values[well]).all()
    if kind != "neural":
        assert answer.values[well].tolist() == [WELL] * len(well)

    sections = {"tested": section_of(policy), "steady": FunctionRewardSection(function="m:f", weight=STEADY_WEIGHT)}
    columns = {"tested": answer.values, "steady": np.ones(4)}
    failed = failures_by_row(answer.failures, np.arange(4), np.zeros(4, dtype=int))
    if policy == "fail" and expected:
        with pytest.raises(DataError, match=f"`tested` failed on prompt {BAD}, sample 0: it"):
            compose(columns, failed, sections)
        return
    composed = compose(columns, failed, sections)
    totals = WEIGHT * answer.values + STEADY_WEIGHT
    if expected is None:
        totals[BAD] = STEADY_WEIGHT
    elif policy == "skip_sample":
        totals[BAD] = np.nan
    else:
        totals[BAD] = WEIGHT + STEADY_WEIGHT  # the other component stands in with all the weight
    assert composed.total == pytest.approx(totals, nan_ok=True)
    assert composed.keep.tolist() == (~np.isnan(totals)).tolist()
    stats = composed.components["tested"]
    assert (stats.applied, stats.did_not_apply, stats.failed) == (3, int(expected is None), len(found))


Answers = Callable[[str, str, str], Answer]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """The cells' answers by (kind, fault, policy). All kinds are scored at the same time: most of it is waiting."""
    folder = tmp_path_factory.mktemp("faults")
    release = threading.Event()
    with faulty_server(release) as url, ThreadPoolExecutor(len(KINDS)) as threads:
        components = {kind: (component(kind, folder, url)) for kind in KINDS}
        results: dict[str, Future[dict[tuple[str, bool], Answer]]] = {
            kind: threads.submit(score_all, kind, components[kind]) for kind in KINDS
        }
        yield lambda kind, fault, policy: results[kind].result()[fault, policy == "fail"]


def score_all(kind: str, section: RewardComponent) -> dict[tuple[str, bool], Answer]:
    """Every fault, by one scorer that stops at a failure and one that goes on (as under the other two policies)."""
    found = {}
    for stops in (True, False):
        policy = "fail" if stops else "skip_sample"
        scorer = make_scorer("tested", section.model_copy(update={"on_failure": policy}), SAMPLES.names, threads=1)
        scorer.ready()
        if kind == "neural":
            slow_down(scorer)
        for fault in (fault for cell, fault in CELLS if cell == kind):
            before = scorer.health()
            table, failures = scorer.score(samples(["well", fault, "well", "well"]))
            after = scorer.health()
            assert table.schema == reward_schema("tested")
            values = table.column("reward/tested").to_numpy(zero_copy_only=False).astype(np.float64)
            counted = (after["samples"] - before["samples"], after["failures"] - before["failures"])
            found[fault, stops] = Answer(values, failures, counted)
    return found


def section_of(policy: str) -> FunctionRewardSection:
    """What composition needs to know of the component."""
    return FunctionRewardSection(function="m:f", weight=WEIGHT, on_failure=policy)


def component(kind: str, folder: Path, url: str) -> RewardComponent:
    if kind == "neural":
        return NeuralRewardSection(
            model=save_faulty_model(folder / "model"), dtype="float32", timeout_s=TIMEOUT_S, tokens_per_batch=1
        )
    if kind == "remote":
        return RemoteRewardSection(url=f"{url}/score", batch_size=1, timeout_s=TIMEOUT_S, retries=1, backoff_s=0.01)
    if kind == "judge":
        rubric = folder / "rubric.txt"
        rubric.write_text("Grade: {response}")
        return JudgeRewardSection(
            base_url=f"{url}/v1", model="m", rubric=str(rubric), timeout_s=TIMEOUT_S, retries=1, backoff_s=0.01
        )
    options: dict[str, dict[str, Any]] = {
        "function": {"function": "faulty_rewards:plain"},
        "async": {"function": "faulty_rewards:waiting", "concurrency": 4},
        "batch": {"function": "faulty_rewards:batch", "batch_size": 4},
        "method": {"function": "faulty_rewards:Judge.score", "constructor": {"value": WELL}},
    }
    return FunctionRewardSection(timeout_s=TIMEOUT_S, **options[kind])


def samples(responses: list[str]) -> pa.Table:
    rows = [
        {
            "prompt_id": i, "sample_index": 0, "policy_version": 0, "prompt": "w1 ", "response": response,
            "prompt_tokens": [1], "response_tokens": [2], "response_logprobs": [0.0], "finish_reason": "stop",
        }
        for i, response in enumerate(responses)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def save_faulty_model(folder: Path) -> str:
    """A model whose embedding of `nan` is NaN and that has none for `raises`, the tokenizer's last word."""
    words = tokenizer()
    words.add_tokens(["well", "late", "nan", "raises"])
    config = LlamaConfig(
        vocab_size=len(words) - 1, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[words.convert_tokens_to_ids("nan")] = torch.nan
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def slow_down(scorer: Any) -> None:
    """Make the loaded model late on `late`."""
    late = tokenizer().vocab_size + 1

    def wait(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if (inputs[0] == late).any():
            threading.Event().wait(LATE_S)

    scorer._reward._model.get_input_embeddings().register_forward_pre_hook(wait)


@contextmanager
def faulty_server(release: threading.Event) -> Iterator[str]:
    """A scorer and a judge on loopback that do what the response says; `release` ends what hangs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"release": release}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    release: threading.Event

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_judge = self.path.endswith("/chat/completions")
        if not is_judge and not body["samples"]:
            self._send(200, {"rewards": []})
            return
        fault = body["messages"][0]["content"].removeprefix("Grade: ") if is_judge else body["samples"][0]["response"]
        if fault == "dies":
            self.close_connection = True
            return
        if fault in ("loop", "late"):
            self.release.wait(60 if fault == "loop" else LATE_S)
        if fault == "raises":
            self._send(422, {"error": "boom"})
        elif is_judge:
            grade = {"nan": '{"grade": NaN}', "wrong_type": "high"}.get(fault, '{"grade": 5}')
            self._send(200, {"choices": [{"message": {"content": grade}, "finish_reason": "stop"}]})
        else:
            odd = {"nan": float("nan"), "none": None, "wrong_type": "high"}
            self._send(200, {"rewards": [odd.get(fault, WELL)]})

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client gave up waiting
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
