"""`rlhf-ray serve-reward` as a process: a component scored over HTTP is the component scored here."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from tiny_models import COMMON, SIZE, tokenizer
from transformers import AutoModelForSequenceClassification, LlamaConfig

from rlhf_ray.actors.scorer import make_scorer
from rlhf_ray.config.rewards import NeuralRewardSection, RemoteRewardSection

pytestmark = pytest.mark.integration

SOURCE = """
def graded(prompt, response, truth):
    if response == "bad": raise ValueError("boom")
    return None if truth is None else float(response == truth)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with a function and a reward model, beside the function's module."""
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(LlamaConfig(**SIZE, **COMMON, num_labels=1))
    model.save_pretrained(folder / "quality")
    tokenizer().save_pretrained(folder / "quality")
    (folder / "served_functions.py").write_text(SOURCE)
    rewards = {
        "graded": {"type": "function", "function": "served_functions:graded", "weight": 3.0},
        "quality": {"type": "neural", "model": str(folder / "quality")},
    }
    content = {"model": {"name": "any"}, "data": {"path": "any.jsonl"}, "rewards": rewards}
    (folder / "ppo.yaml").write_text(yaml.safe_dump(content))
    return folder / "ppo.yaml"


def command(config: Path, *arguments: str) -> dict[str, Any]:
    line = [
        sys.executable,
        "-m",
        "rlhf_ray.cli.main",
        "serve-reward",
        "--config",
        str(config),
        "--port",
        "0",
        *arguments,
    ]
    return {"args": line, "cwd": config.parent, "stdout": subprocess.PIPE, "text": True}


@contextmanager
def serving(config: Path, *arguments: str, end: signal.Signals = signal.SIGINT) -> Iterator[str]:
    """The address of a server process, which must end well on Ctrl-C and when its container does."""
    process = subprocess.Popen(**command(config, *arguments))
    assert process.stdout is not None
    try:
        announced = process.stdout.readline()
        assert announced.startswith("serving "), announced
        yield announced.split()[3]
        process.send_signal(end)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def table(**columns: list[Any]) -> pa.Table:
    rows = len(columns["response"])
    keys = {"prompt_id": pa.array(range(rows), pa.int64()), "sample_index": pa.array([0] * rows, pa.int32())}
    return pa.table({**keys, "prompt": ["w1 w2"] * rows, **columns})


def test_a_function_with_a_column(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    with serving(config, "--name", "graded", "--column", "truth", "--token-env", "REWARD_TOKEN") as url:
        section = RemoteRewardSection(
            url=url, columns=["truth"], token_env="REWARD_TOKEN", batch_size=2, on_failure="leave_out"
        )
        samples = table(response=["w3", "bad", "w4", "w5"], truth=["w3", "w3", None, "w3"])
        scorer = make_scorer("there", section, samples.column_names)
        scorer.ready()
        answer, failures = scorer.score(samples)
    assert answer.column("reward/there").to_pylist() == [1.0, None, None, 0.0]
    (failure,) = failures
    assert (failure.prompt_id, failure.kind) == (1, "raised")
    assert "ValueError: boom" in failure.describe()


def test_a_reward_model(config: Path) -> None:
    samples = table(response=["w3 w4", "w5", "w6 w7 w8"])
    here, _ = make_scorer("quality", NeuralRewardSection(model=str(config.parent / "quality"))).score(samples)
    with serving(config, "--name", "quality", end=signal.SIGTERM) as url:
        there, failures = make_scorer("quality", RemoteRewardSection(url=url), samples.column_names).score(samples)
    assert failures == []
    assert there.column("reward/quality").to_pylist() == pytest.approx(
        here.column("reward/quality").to_pylist(), abs=1e-6
    )
    assert len(set(there.column("reward/quality").to_pylist())) == 3


def test_what_cannot_be_served_is_said_before_anything_listens(config: Path) -> None:
    for arguments, said in [
        (["--name", "qualty"], "--name qualty: the configuration has no such component; it has graded, quality"),
        (["--name", "graded", "--token-env", "NO_SUCH"], "--token-env NO_SUCH: this environment variable is not set"),
        (["--name", "graded"], "needs `truth`"),
    ]:
        ended = subprocess.run(**command(config, *arguments), stderr=subprocess.PIPE, timeout=120)
        assert ended.returncode == 2
        assert said in ended.stderr
