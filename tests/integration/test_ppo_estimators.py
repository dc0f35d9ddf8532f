"""A PPO run without a critic, with all of DAPO and importance weights: what it draws, drops, trains on and counts."""

import pandas as pd
import pytest
from tiny_runs import TinyRuns

from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

PROMPTS, SAMPLES, ITERATIONS = 4, 4, 2


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
