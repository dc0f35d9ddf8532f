"""Scorers as real Ray actors: the run's own sample table in, narrow reward tables and failures out."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf_ray.actors.scorer import FunctionScorer, NeuralScorer
from rlhf_ray.config.rewards import FunctionRewardSection, NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.compose import compose
from rlhf_ray.rewards.failure import failures_by_row
from rlhf_ray.schema import SAMPLES, reward_schema

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

SOURCE = r"""
import math, os, re, signal

def rule(prompt, response, finish_reason):
    if response == "loop":
        re.match(r"(a+)+$", "a" * 64 + "b")
    if response == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if response == "raise": raise ValueError("boom")
    if response == "nan": return math.nan
    if response == "none": return None
    return float(len(response))
"""


@pytest.fixture
def functions(tmp_path: Path) -> dict[str, Any]:
    """The options of an actor that finds our reward functions, as a run's working directory would provide them."""
    (tmp_path / "functions_for_actors.py").write_text(SOURCE)
    return {"runtime_env": {"env_vars": {"PYTHONPATH": str(tmp_path)}}, "num_cpus": 0.1, "max_concurrency": 4}


@pytest.fixture
def killed_after() -> Iterator[list[ray.actor.ActorHandle]]:
    actors: list[ray.actor.ActorHandle] = []
    yield actors
    for actor in actors:
        ray.kill(actor)


def samples(responses: list[str]) -> pa.Table:
    rows = [
        {
            "prompt_id": i, "sample_index": 0, "policy_version": 0, "prompt": "p ", "response": response,
            "prompt_tokens": [3], "response_tokens": [4 + i, 2], "response_logprobs": [0.0, 0.0],
            "finish_reason": "stop",
        }
        for i, response in enumerate(responses)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def test_function_and_neural_scorers_compose(
    functions: dict[str, Any], killed_after: list[ray.actor.ActorHandle], tmp_path: Path
) -> None:
    rule = FunctionRewardSection(
        function="functions_for_actors:rule", timeout_s=1.0, on_failure="skip_sample", weight=0.5
    )
    neural = NeuralRewardSection(model=str(save_reward_model(tmp_path / "model")), dtype="float32")
    actors = {
        "rule": ray.remote(FunctionScorer).options(**functions).remote("rule", rule, SAMPLES.names),
        "quality": ray.remote(NeuralScorer)
        .options(num_cpus=0.1, max_concurrency=4)
        .remote("quality", neural, SAMPLES.names, 1),
    }
    killed_after += actors.values()
    assert ray.get([actor.ready.remote() for actor in actors.values()], timeout=120) == [
        {"component": "rule", "columns": ("finish_reason",)},
        {"component": "quality", "device": "cpu"},
    ]

    table = samples(["fine", "raise", "loop", "none", "kill", "nan", "fine"])
    reference = ray.put(table)
    answers = {name: actor.score.remote(reference) for name, actor in actors.items()}
    columns, failures = {}, []
    for name, answer in answers.items():
        scored, failed = ray.get(answer, timeout=60)
        assert scored.schema == reward_schema(name)
        columns[name] = scored.column(f"reward/{name}").to_numpy()
        failures += failed
    assert [(failure.prompt_id, failure.kind) for failure in failures] == [
        (1, "raised"), (2, "timeout"), (4, "died"), (5, "not_finite")
    ]  # fmt: skip
    assert "in rule" in failures[1].traceback
    assert ray.get(actors["rule"].health.remote(), timeout=10)["restarts"] == 2

    rows = failures_by_row(failures, table["prompt_id"].to_numpy(), table["sample_index"].to_numpy())
    composed = compose(columns, rows, {"rule": rule, "quality": neural})
    assert composed.keep.tolist() == [True, False, False, True, False, False, True]
    expected = columns["quality"] + 0.5 * torch.tensor([4.0, 0, 0, 0, 0, 0, 4.0]).numpy()
    assert composed.total[composed.keep] == pytest.approx(expected[composed.keep])


def test_health_answers_in_a_hang_and_a_killed_actor_leaves_no_process(functions: dict[str, Any]) -> None:
    section = FunctionRewardSection(function="functions_for_actors:rule", timeout_s=60.0)
    actor = ray.remote(FunctionScorer).options(**functions).remote("rule", section, SAMPLES.names)
    ray.get(actor.ready.remote(), timeout=60)
    before = set(sandboxes())
    actor.score.remote(samples(["loop"]))
    time.sleep(0.5)
    assert ray.get(actor.health.remote(), timeout=10)["state"] == "scoring"
    assert before
    ray.kill(actor)
    deadline = time.monotonic() + 10
    while before & set(sandboxes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not before & set(sandboxes())


def test_a_config_error_keeps_its_type_and_text_across_ray(
    functions: dict[str, Any], killed_after: list[ray.actor.ActorHandle]
) -> None:
    section = FunctionRewardSection(function="functions_for_actors:rull")
    actor = ray.remote(FunctionScorer).options(**functions).remote("rule", section, SAMPLES.names)
    killed_after.append(actor)
    with pytest.raises(ConfigError, match="Did you mean `rule`"):
        ray.get(actor.ready.remote(), timeout=60)


def save_reward_model(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(16)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2").save_pretrained(folder)
    (folder / "rlhf_ray_reward.json").write_text('{"mean": 0.0, "std": 1.0}')
    return folder


def sandboxes() -> list[int]:
    """Living sandbox processes on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (OSError, IndexError):
            continue
        if b"rlhf_ray.rewards.worker" in command and sys.executable.encode() in command and not zombie:
            found.append(int(entry.name))
    return found
