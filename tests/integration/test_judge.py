"""A judge behind a real vLLM server: structured output makes even random weights answer in form."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from rlhf_ray.actors.scorer import make_scorer
from rlhf_ray.config.rewards import JudgeRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.judge import JudgeScorer
from rlhf_ray.rewards.outcome import Outcome

pytestmark = pytest.mark.integration

COLUMNS = ["prompt_id", "sample_index", "prompt", "response"]
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "
START_S = 300.0


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]
    rubric: str


def save_byte_llama(folder: Path) -> None:
    """A random Llama over single bytes, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate([*alphabet, "<pad>", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=None, eos_token_id=vocabulary["<end>"],
        pad_token_id=vocabulary["<pad>"], initializer_range=0.5,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("judge")
    save_byte_llama(folder / "model")
    (folder / "rubric.txt").write_text("How good is the answer {response} to {prompt}, from 0 to 10?")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    no_blanks = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    options = {
        "model": folder / "model", "served-model-name": "grader", "host": "127.0.0.1", "port": port,
        "api-key": "s3cret", "dtype": "float32", "max-model-len": 512, "structured-outputs-config": no_blanks,
    }  # fmt: skip
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *arguments]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUDGE_TOKEN", "s3cret")
            yield Server(f"http://127.0.0.1:{port}/v1", process, str(folder / "rubric.txt"))
    finally:
        _stop(process)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine: they are a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(timeout=30)


def section(server: Server, **options: Any) -> JudgeRewardSection:
    chosen = {
        "token_env": "JUDGE_TOKEN",
        "on_failure": "skip_sample",
        "timeout_s": 120,
        "max_new_tokens": 64,
        **options,
    }
    return JudgeRewardSection(base_url=server.url, model="grader", rubric=server.rubric, **chosen)


def table(responses: list[str]) -> pa.Table:
    rows = range(len(responses))
    return pa.table(
        {
            "prompt_id": pa.array(rows, pa.int64()), "sample_index": pa.array([0] * len(rows), pa.int32()),
            "prompt": [f"question {i}" for i in rows], "response": responses,
        }
    )  # fmt: skip


def grades(outcomes: list[Outcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def test_random_weights_grade_in_form_and_the_same_every_time(server: Server) -> None:
    judge = JudgeScorer("judged", section(server), COLUMNS)
    judge.start()
    answers = table([f"answer number {i}" for i in range(12)])
    first = judge.score(answers)
    assert [outcome.failure for outcome in first] == [None] * 12
    assert set(grades(first)) <= {grade / 10 for grade in range(11)}
    assert grades(judge.score(answers)) == grades(first)
    judge.close()


def test_the_scorer_of_a_run_asks_the_judge(server: Server) -> None:
    scorer = make_scorer("judged", section(server, minimum=0, maximum=1), COLUMNS)
    scorer.ready()
    answer, failures = scorer.score(table(["good", "bad"]))
    assert failures == []
    assert set(answer.column("reward/judged").to_pylist()) <= {0.0, 1.0}


def test_fractional_ranges_are_held_too(server: Server) -> None:
    outcomes = JudgeScorer("judged", section(server, minimum=0.5, maximum=1.5, max_new_tokens=200), COLUMNS).score(
        table(["good", "bad", "ugly"])
    )
    assert all(outcome.value is None or 0 <= outcome.value <= 1 for outcome in outcomes)
    assert any(outcome.value is not None for outcome in outcomes)


def test_plain_gibberish_is_a_failure_that_shows_it(server: Server) -> None:
    (outcome,) = JudgeScorer("judged", section(server, structured=False), COLUMNS).score(table(["good"]))
    assert outcome.value is None
    assert outcome.failure is not None
    assert outcome.failure.kind == "wrong_type"
    assert outcome.failure.message.startswith("answered without a grade; it was cut at max_new_tokens (64): ")


def test_a_sample_beyond_the_judges_context_fails_alone(server: Server) -> None:
    outcomes = JudgeScorer("judged", section(server), COLUMNS).score(table(["short", "long " * 200]))
    assert outcomes[0].value is not None
    assert outcomes[1].failure is not None
    assert outcomes[1].failure.kind == "raised"
    assert "512" in outcomes[1].failure.message


def test_wrong_names_and_tokens_are_errors_of_the_configuration(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    misnamed = section(server).model_copy(update={"model": "graderr"})
    with pytest.raises(ConfigError, match=r"has no model `graderr`. Did you mean `grader`"):
        JudgeScorer("judged", misnamed, COLUMNS).start()
    with pytest.raises(ConfigError, match=r"404 .*graderr"):
        JudgeScorer("judged", misnamed, COLUMNS).score(table(["good"]))
    monkeypatch.setenv("OTHER_TOKEN", "wrong")
    with pytest.raises(ConfigError, match=r"(?s)401 .*token_env"):
        JudgeScorer("judged", section(server, token_env="OTHER_TOKEN"), COLUMNS).start()


def test_a_server_that_dies_fails_its_samples(server: Server) -> None:
    judge = JudgeScorer("judged", section(server, retries=1, backoff_s=0.1), COLUMNS)
    assert judge.score(table(["good"]))[0].value is not None
    _stop(server.process)
    (outcome,) = judge.score(table(["good"]))
    assert outcome.failure is not None
    assert outcome.failure.kind == "died"
    assert "2 attempts" in outcome.failure.message
