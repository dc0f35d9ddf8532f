"""Three stages as one configuration: placeholders name what earlier stages made."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig, fill, placeholders
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.rlhf import RLHFTrainer

pytestmark = pytest.mark.unit

YAML = """
run: {root: ROOT, name: all}
sft: {model: {name: base}, data: {path: demonstrations.jsonl}}
reward_model: {model: {name: "${sft}"}, data: {path: pairs.jsonl}}
ppo:
  model: {name: "${sft}"}
  data: {path: prompts.jsonl}
  critic: {init_from: "${reward_model}"}
  rewards:
    quality: {type: neural, model: "${reward_model}"}
    several: {type: ensemble, models: ["${reward_model}", other]}
"""


def write(tmp_path: Path, text: str = YAML) -> Path:
    path = tmp_path / "rlhf.yaml"
    path.write_text(text.replace("ROOT", str(tmp_path / "runs")))
    return path


def test_placeholders_become_the_stages_models(tmp_path: Path) -> None:
    config = load_config(RLHFConfig, [write(tmp_path)])
    found = [key for key, stage in placeholders(config.ppo, "ppo") if stage == "reward_model"]
    assert found == ["ppo.rewards.quality.model", "ppo.rewards.several.models", "ppo.critic.init_from"]
    filled: Any = fill(config.ppo, {"sft": "/sft", "reward_model": "/rm"})
    assert filled.model.name == "/sft"
    assert filled.rewards["quality"].model == "/rm"
    assert filled.rewards["several"].models == ["/rm", "other"]
    assert list(placeholders(filled, "ppo")) == []
    assert config.ppo is not None
    assert config.ppo.model.name == "${sft}"  # the configuration stays what it was
    assert load_config(RLHFConfig, [write(tmp_path, config.to_yaml())]) == config


@pytest.mark.parametrize(
    ("replace", "problem"),
    [
        (
            ('init_from: "${reward_model}"', 'init_from: "${ppo}"'),
            r"ppo.critic.init_from names \$\{ppo\}, but there is",
        ),
        (
            ("sft: {model: {name: base}", 'sft: {model: {name: "${sft}"}'),
            r"names \$\{sft\}, but there is no earlier stage",
        ),
        (("sft: {model: {name: base}, data: {path: demonstrations.jsonl}}\n", ""), r"reward_model.model.name names"),
    ],
)
def test_a_placeholder_of_no_earlier_stage_is_refused(tmp_path: Path, replace: tuple[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(RLHFConfig, [write(tmp_path, YAML.replace(*replace))])


def test_an_empty_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give at least one of sft, reward_model, dpo, ppo, evaluation"):
        load_config(RLHFConfig, [write(tmp_path, "run: {name: nothing}\n")])


def test_a_stage_waits_for_what_it_builds_on(tmp_path: Path) -> None:
    trainer = RLHFTrainer(load_config(RLHFConfig, [write(tmp_path)]))
    policy = tmp_path / "runs" / "all" / "sft" / "policy"
    with pytest.raises(ConfigError, match=rf"reward_model.model.name: \$\{{sft\}} is not trained yet: .* {policy}$"):
        trainer.train_reward_model()
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    assert trainer._models("reward_model") == {"sft": policy}
    run = trainer._placed("reward_model").run
    assert (run.root, run.name) == (str(tmp_path / "runs" / "all"), "reward_model")


def test_a_stage_that_is_not_configured_says_so(tmp_path: Path) -> None:
    config = load_config(RLHFConfig, [write(tmp_path)])
    config.ppo = None
    with pytest.raises(ConfigError, match="ppo: is not configured"):
        RLHFTrainer(config).train_ppo()
