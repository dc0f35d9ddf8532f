"""A PPO run whose frozen weights are quantised: learner, generator and reference agree on what they were rounded to."""

from pathlib import Path

import pytest
import torch
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM

from rlhf_ray.config.common import ModelSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.models.lora import merged_tensors
from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

LORA = "model.lora={r: 4, alpha: 8, target_modules: [c_attn]}"


def options(tiny: TinyRuns, *more: str) -> list[str]:
    cut = ["data.max_prompt_tokens=4", "data.too_long=truncate"]
    return [f"model.name={tiny.gpt2}", LORA, "model.quantization=4bit", "critic.kind=auto", *cut, *more]


def test_everyone_sees_the_rounded_weights(tiny: TinyRuns, tmp_path: Path) -> None:
    learner = ["learner.learning_rate=0.01", "learner.optimizer=adamw_8bit", "model.gradient_checkpointing=true"]
    result = PPOTrainer(tiny.ppo(tmp_path, "qlora", *options(tiny, *learner))).train()
    assert len(result.history) == 2
    for metrics in result.history:  # the first iteration is sampled from the rounded weights, the second with adapters
        assert metrics["audit/max_gap"] < 1e-4
    first, second = (abs(metrics["kl/mean"]) for metrics in result.history)
    assert first < 1e-4  # a reference with other weights would be far away from the start
    assert second > 10 * first

    section = ModelSection(name=tiny.gpt2, lora={}, quantization="4bit")  # type: ignore[arg-type]
    rounded = dict(merged_tensors(load_causal_lm(section)))
    trained = dict(AutoModelForCausalLM.from_pretrained(result.policy).named_parameters())
    original = dict(AutoModelForCausalLM.from_pretrained(tiny.gpt2).named_parameters())
    for name, tensor in trained.items():
        adapted = "c_attn.weight" in name
        assert torch.equal(tensor, rounded[name]) != adapted, name
    fixed = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(rounded[fixed], original[fixed])


def test_adapters_alone_do_not_fit_the_engine(tiny: TinyRuns, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sync\.lora: adapter, but .* rounded to 4bit; set sync\.lora=merged"):
        PPOTrainer(tiny.ppo(tmp_path, "adapter", *options(tiny, "sync.lora=adapter"))).train()
