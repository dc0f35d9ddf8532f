"""A run without a critic over a quantised base: GRPO with all of DAPO, importance weights, adapters on 4-bit weights.

What it draws, drops, trains on and counts; that learner, generator and reference agree on what was rounded.
"""

from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM

from rlhf_ray.config.common import ModelSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.models.lora import merged_tensors
from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

PROMPTS, SAMPLES, ITERATIONS = 4, 4, 2
LORA = "model.lora={r: 4, alpha: 8, target_modules: [c_attn]}"


def quantised(tiny: TinyRuns) -> list[str]:
    cut = ["data.max_prompt_tokens=4", "data.too_long=truncate"]
    return [f"model.name={tiny.gpt2}", LORA, "model.quantization=4bit", *cut]


@pytest.fixture(scope="module")
def grpo(
    ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PPOResult, list[pd.DataFrame]]:
    config = tiny.ppo(
        tmp_path_factory.mktemp("runs"),
        "grpo",
        "rewards.short.enabled=false",
        "rewards.first={type: function, function: 'tiny_rewards:first_word_on_even'}",
        f"ppo={{iterations: {ITERATIONS}, prompts_per_iteration: {PROMPTS}, samples_per_prompt: {SAMPLES},"
        " samples_per_minibatch: 8, ppo_epochs: 2, advantage: grpo, loss_average: token, clip_range_high: 0.28,"
        " dual_clip: 3, tis_cap: 2, dynamic_sampling: {enabled: true, max_rounds: 3}}",
        "kl={coef: 0.1, placement: loss, estimator: k3, warmup_iterations: 2}",
        "critic.kind=auto",
        *quantised(tiny),
        "model.gradient_checkpointing=true",
        "learner={learning_rate: 0.01, optimizer: adamw_8bit, dtype: float32, tokens_per_microbatch: 64}",
    )
    result = PPOTrainer(config).train()
    frames = [pd.read_parquet(path) for path in sorted((result.folder / "rollouts").glob("*.parquet"))]
    return result, frames


def test_prompts_without_a_signal_are_replaced_and_counted(grpo: tuple[PPOResult, list[pd.DataFrame]]) -> None:
    result, frames = grpo
    assert len(frames) == ITERATIONS
    for metrics, frame in zip(result.history, frames, strict=True):
        rewards = frame.groupby("prompt_id")["reward"]
        with_signal = int((rewards.max() > rewards.min()).sum())
        assert metrics["samples/total"] == len(frame) == SAMPLES * metrics["samples/prompts"]
        assert metrics["samples/prompts_with_signal"] == with_signal
        assert metrics["samples/trained"] == SAMPLES * with_signal
        assert with_signal == PROMPTS or metrics["samples/rounds"] == 3
        assert with_signal <= PROMPTS
        assert (rewards.count() == SAMPLES).all()  # no prompt was drawn twice
        assert frame["reference_logprobs"].notna().all()
    assert max(metrics["samples/rounds"] for metrics in result.history) > 1


def test_there_is_no_critic_and_the_penalty_warms_up(grpo: tuple[PPOResult, list[pd.DataFrame]]) -> None:
    history = grpo[0].history
    assert not [name for name in history[0] if name.startswith(("critic/", "value/", "loss/value"))]
    assert [metrics["kl/coef"] for metrics in history] == [0.0, 0.05]
    assert history[1]["kl/mean"] != 0
    for metrics in history:
        assert metrics["policy/tis_mean"] == pytest.approx(1.0, abs=1e-3)  # one engine, one dtype
        assert metrics["policy/grad_norm"] > 0


def test_everyone_sees_the_rounded_weights(grpo: tuple[PPOResult, list[pd.DataFrame]], tiny: TinyRuns) -> None:
    result, _ = grpo
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
        PPOTrainer(tiny.ppo(tmp_path, "adapter", *quantised(tiny), "critic.kind=auto", "sync.lora=adapter")).train()
