"""SFT, reward model and PPO as one: every stage starts from what the one before it left, and goes on after a stop."""

from pathlib import Path

import pytest
from tiny_runs import TinyRuns

from rlhf_ray import RLHFConfig, RLHFTrainer
from rlhf_ray.config.common import RunSection

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture
def config(tiny: TinyRuns, tmp_path: Path) -> RLHFConfig:
    reward = "rewards.quality={type: neural, model: '${reward_model}', weight: 0.5}"
    unused = (tmp_path, "unused")  # the three stages share the place of the whole
    return RLHFConfig(
        run=RunSection(root=str(tmp_path), name="all"),
        sft=tiny.sft(*unused, "sft.epochs=1"),
        reward_model=tiny.reward_model(*unused, "model.name=${sft}", "reward.epochs=1"),
        ppo=tiny.ppo(*unused, "model.name=${sft}", "ppo.iterations=1", "critic.init_from=${reward_model}", reward),
    )


def test_the_stages_build_on_each_other(config: RLHFConfig, tmp_path: Path) -> None:
    result = RLHFTrainer(config).train()
    assert result.sft is not None
    assert result.reward_model is not None
    assert result.ppo is not None
    sft, reward_model = tmp_path / "all" / "sft" / "policy", tmp_path / "all" / "reward_model" / "policy"
    assert (result.sft.model, result.reward_model.model) == (sft, reward_model)
    assert base_of(tmp_path / "all" / "reward_model") == str(sft)
    text = (tmp_path / "all" / "ppo" / "config.yaml").read_text()
    assert text.count(str(sft)) == 1
    assert text.count(str(reward_model)) == 2  # the reward and the critic's start
    assert "reward/quality/mean" in result.ppo.final
    assert not (tmp_path / "unused").exists()

    assert config.ppo is not None
    config.ppo.ppo.iterations = 2
    longer = RLHFTrainer(config).train_ppo()
    assert longer.iterations == 2
    assert longer.history[0] == result.ppo.history[0]


def base_of(run: Path) -> str:
    """The model that a run started from."""
    line = next(line for line in (run / "config.yaml").read_text().splitlines() if line.startswith("  name: /"))
    return line.removeprefix("  name: ")
