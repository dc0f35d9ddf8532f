"""What README.md shows of Python and YAML is run as it stands, up to what needs a model from a hub."""

import re
from pathlib import Path

import pytest
import yaml

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.load import load_config

pytestmark = pytest.mark.unit

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_builds_the_run_that_it_describes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards, script = blocks("python")
    (tmp_path / "my_rewards.py").write_text(rewards)
    monkeypatch.syspath_prepend(str(tmp_path))
    building, training = script.split("result = trainer.train")
    names: dict[str, object] = {}
    exec(building, names)
    assert training.startswith("(max_iterations=50")
    scores, config = capsys.readouterr().out.split("run:\n")
    assert "brevity" in scores
    assert "correct" in scores
    (tmp_path / "run.yaml").write_text("run:\n" + config)
    assert load_config(PPOConfig, [tmp_path / "run.yaml"]) == names["trainer"].config


def test_yaml_of_rewards_is_valid(tmp_path: Path) -> None:
    (shown,) = blocks("yaml")
    (tmp_path / "run.yaml").write_text(shown + "\nmodel: {name: gpt2}\ndata: {path: prompts.jsonl}\n")
    config = load_config(PPOConfig, [tmp_path / "run.yaml"])
    assert set(config.rewards) == set(yaml.safe_load(shown)["rewards"])
    assert config.rewards["correct"].gate.component == "brevity"
