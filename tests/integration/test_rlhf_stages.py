"""Stages as one: each starts from what the one before it left, and goes on after a stop. (With PPO: test_demo.)"""

from pathlib import Path

import pytest
import yaml
from tiny_runs import TinyRuns

from rlhf_ray import RLHFConfig, RLHFTrainer
from rlhf_ray.config.common import RunSection

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_the_stages_build_on_each_other(tiny: TinyRuns, tmp_path: Path) -> None:
    unused = (tmp_path, "unused")  # the stages share the place of the whole
    config = RLHFConfig(
        run=RunSection(root=str(tmp_path), name="all"),
        sft=tiny.sft(*unused, "sft.epochs=1"),
        reward_model=tiny.reward_model(*unused, "model.name=${sft}", "reward.epochs=1"),
    )
    result = RLHFTrainer(config).train()
    assert result.sft is not None
    assert result.reward_model is not None
    assert result.ppo is None
    sft, reward_model = tmp_path / "all" / "sft", tmp_path / "all" / "reward_model"
    assert (result.sft.model, result.reward_model.model) == (sft / "policy", reward_model / "policy")
    assert yaml.safe_load((reward_model / "config.yaml").read_text())["model"]["name"] == str(sft / "policy")
    assert not (tmp_path / "unused").exists()

    assert config.sft is not None
    config.sft.sft.epochs = 2
    longer = RLHFTrainer(config).train_sft()
    assert longer.steps == 2 * result.sft.steps
    assert longer.before == result.sft.before
