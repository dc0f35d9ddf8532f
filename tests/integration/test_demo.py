"""The demo, quick: every stage on real text, from nothing."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.trainers.demo import run_demo

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_the_quick_demo_runs_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = run_demo(root=tmp_path, name="demo", quick=True)
    folder, result = stages.folder, stages.ppo
    assert result is not None
    assert folder == tmp_path / "demo"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "logs") == [
        "data",
        "ppo",
        "reward_model",
        "sft",
    ]
    assert len(result.history) == 2
    assert all(metrics["audit/mean_gap"] < 5e-2 for metrics in result.history)
    assert result.before is not None
    assert result.after is not None
    assert result.before.prompts == result.after.prompts
    assert set(result.after.components) >= {"quality", "one_sentence", "mentions_name"}
    rows = pq.read_table(folder / "ppo" / "rollouts" / "iteration-000002.parquet").to_pylist()
    assert all(row["prompt"].count("def ") + row["prompt"].count("class ") for row in rows)
    ppo = yaml.safe_load((folder / "ppo" / "config.yaml").read_text())
    assert ppo["model"]["name"] == str(folder / "sft" / "policy")
    assert ppo["rewards"]["quality"]["model"] == str(folder / "reward_model" / "policy")
    sft = [json.loads(line) for line in (folder / "sft" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["eval/loss"] for line in sft if "eval/loss" in line]
    assert held_out[-1] < held_out[0] - 0.3  # nats: ten steps from noise
    model = AutoModelForCausalLM.from_pretrained(result.policy)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(result.policy))
    shown = capsys.readouterr().out
    for words in ("Supervised fine-tuning", "Reward model", "PPO", "Result", "before", "after", str(folder)):
        assert words in shown
