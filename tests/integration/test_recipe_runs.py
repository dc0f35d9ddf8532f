"""The tiny recipes, cut to a few iterations: by the command and by the script, with all that they promise to show."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf_ray import PPOTrainer
from rlhf_ray.cli.main import main
from rlhf_ray.demo.recipes import files, preferences

pytestmark = [pytest.mark.recipe, pytest.mark.usefixtures("ray_local")]

CONFIGS = Path(__file__).parents[2] / "configs"
#: A run that takes seconds. Its policy has learned little, so that answers run to the limit.
SHORT = {
    "ppo.iterations": 3,
    "ppo.prompts_per_iteration": 16,
    "ppo.samples_per_minibatch": 8,
    "generation.max_new_tokens": 12,
    "evaluation.every": 1,
    "evaluation.prompts": 8,
    "evaluation.show_samples": 1,
    "resources.threads": 2,
}


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are made in a moment."""
    monkeypatch.setattr(files, "TEXTS", 64)
    monkeypatch.setattr(files, "PAIRS", 32)
    monkeypatch.setattr(preferences, "PAIRS", 96)
    monkeypatch.setattr(preferences, "READ", 128)


def test_sentiment_by_the_command(tmp_path: Path) -> None:
    overrides = [f"{key}={value}" for key, value in SHORT.items()]
    stop = ["early_stop.kl=1e-4", "learner.learning_rate=0.01", "rewards.positivity_reward.weight=2"]
    place = [f"run.root={tmp_path}", "run.name=short"]
    recipe = str(CONFIGS / "sentiment_gpt2.yaml")
    done = CliRunner().invoke(main, ["ppo", "--config", recipe, "--tiny", *place, *overrides, *stop])
    assert done.exit_code == 0, done.output
    run = tmp_path / "short"
    shown = " ".join(done.output.split())
    for words in ("model.name", "learner.learning_rate", "brevity_bonus", "positivity_reward", "coherence_penalty"):
        assert words in shown
    assert "nats per response" in shown, "the run says why it stopped"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [line for line in metrics if "reward/mean" in line]
    assert len(rewards) == 2, "the first update moved the policy, so the KL of the second iteration stopped the run"
    for line in rewards:
        parts = {name: line[f"reward/{name}/mean"] for name in ("brevity_bonus", "coherence_penalty")}
        total = 0.5 * sum(parts.values()) + 2 * line["reward/positivity_reward/mean"]
        assert line["reward/mean"] == pytest.approx(total, abs=1e-6)
    best = json.loads((run / "best" / "best.json").read_text())
    held_out = [line["eval/reward/mean"] for line in metrics if "eval/reward/mean" in line]
    assert best["reward"] == pytest.approx(max(held_out))
    (base,) = tmp_path.glob("tiny-recipes/sentiment_gpt2-*/policy")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "policy" / "adapter")
    assert {name.split(".")[-1] for name in adapted.targeted_module_names} == {"c_attn", "c_proj"}


def test_instruction_following_by_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = CONFIGS / "instruction_following_llama2_7b.py"
    spec = importlib.util.spec_from_file_location("script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    short = SHORT | {"ppo.iterations": 2, "sync.lora": "adapter", "learner.dtype": "float32"}
    result = PPOTrainer(script.build(tiny=True).config, training=short, run={"root": str(tmp_path)}).train()
    assert set(result.components) == set(script.build().config.rewards)
    assert all(np.isfinite(curve).all() and len(curve) == 2 for curve in result.components.values())
    assert all(metrics["audit/max_gap"] < 1e-3 for metrics in result.history)
    assert (result.folder / "best" / "adapter").is_dir()
    assert "format_compliance" in result.summary()


#: What each stage of a pipeline is cut to.
SHORT_STAGES = {
    "sft": ("sft.epochs=1",),
    "reward_model": ("reward.epochs=1",),
    "dpo": ("dpo.epochs=1",),
    "ppo": tuple(f"{key}={value}" for key, value in (SHORT | {"ppo.iterations": 1}).items()),
    "evaluation": ("data.max_samples=8", "generation.max_new_tokens=12", "resources.threads=2"),
}
PIPELINES = {
    "preference_llama31_8b_qlora": ("reward_model", "dpo", "ppo", "evaluation"),
    "pipeline_llama2_7b_hh": ("sft", "reward_model", "dpo", "ppo", "evaluation"),
    "mistral_7b_hh_rlhf": ("reward_model", "ppo", "evaluation"),
}


@pytest.mark.parametrize("recipe", PIPELINES)
def test_a_pipeline_by_the_command(recipe: str, tmp_path: Path) -> None:
    stages = PIPELINES[recipe]
    cuts = [f"{stage}.{override}" for stage in stages for override in SHORT_STAGES[stage]]
    place = [f"run.root={tmp_path}", "run.name=short"]
    done = CliRunner().invoke(
        main, ["pipeline", "--config", str(CONFIGS / f"{recipe}.yaml"), "--tiny", *place, *cuts], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    entries = json.loads((tmp_path / "short" / "pipeline.json").read_text())
    assert [stage for stage in stages if entries[stage]["finished"]] == list(stages)
    report = json.loads((tmp_path / "short" / "evaluation" / "report.json").read_text())
    rewards = [value for measures in report["measures"].values() for value in measures["reward"].values()]
    assert len(report["measures"]) == 2
    assert np.isfinite([value for value in rewards if isinstance(value, float)]).all()
