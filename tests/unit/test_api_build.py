"""Python arguments give the configuration that YAML gives, and name what is wrong in them."""

import json
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import pytest

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.common import LoraSection, RunSection
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.config.load import load_config
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.config.training import KEYS, TrainingConfig
from rlhf_ray.config.tree import all_keys
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.composer import RewardComposer
from rlhf_ray.rewards.decorator import llm_reward
from rlhf_ray.rewards.terms import HuggingFaceRewardModel
from rlhf_ray.trainers.build import build_config
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit

YAML = """
run: {root: /runs, seed: 3}
model: {name: gpt2, lora: {r: 4, alpha: 8.0, target_modules: [c_attn]}}
data: {path: prompts.jsonl, max_samples: 100}
rewards:
  brevity: {type: function, function: "test_api_build:brevity", weight: 0.5}
ppo: {iterations: 10, prompts_per_iteration: 8}
learner: {learning_rate: 1.0e-4}
generation: {max_new_tokens: 32, temperature: 0.7}
"""


def brevity(prompt: str, response: str) -> float:
    return max(0.0, 1.0 - len(response) / 300)


class Manners(RewardComposer):
    @llm_reward
    def polite(self, prompt: str, response: str) -> float:
        return float("please" in response)


@pytest.fixture
def from_yaml(tmp_path: Path) -> PPOConfig:
    (tmp_path / "ppo.yaml").write_text(YAML)
    return load_config(PPOConfig, [tmp_path / "ppo.yaml"])


def test_python_and_yaml_build_the_same_configuration(from_yaml: PPOConfig) -> None:
    config = build_config(
        "gpt2",
        reward=0.5 * RewardComposer(brevity),
        lora=LoraSection(r=4, alpha=8.0, target_modules=["c_attn"]),
        data={"path": "prompts.jsonl", "max_samples": 100},
        training=TrainingConfig(iterations=10, prompts_per_iteration=8, learning_rate=1e-4, seed=3),
        generation=GenerationSection(max_new_tokens=32, temperature=0.7),
        run={"root": "/runs"},
    )
    assert config == from_yaml


def test_arguments_change_a_configuration(from_yaml: PPOConfig) -> None:
    config = build_config(
        from_yaml, reward=Manners(), lora={"r": 16}, training={"ppo.epochs": 2.0, "iterations": None}, run="second"
    )
    assert list(config.rewards) == ["polite"]  # a new reward replaces the old one
    assert config.model.lora == LoraSection(r=16, alpha=8.0, target_modules=["c_attn"])  # a dict changes single keys
    assert (config.ppo.epochs, config.ppo.iterations) == (2.0, None)
    assert (config.run.root, config.run.seed, config.run.name) == ("/runs", 3, "second")
    assert from_yaml.model.lora is not None
    assert from_yaml.model.lora.r == 4  # the one given stays as it was
    replaced = build_config(from_yaml, data=PromptDataSection(path="others.csv"))
    assert replaced.data == PromptDataSection(path="others.csv")  # a section replaces its own
    assert build_config(from_yaml) == from_yaml


def test_a_component_is_switched_off_by_a_dotted_key(from_yaml: PPOConfig) -> None:
    assert not build_config(from_yaml, training={"rewards.brevity.enabled": False}).rewards["brevity"].enabled


@pytest.mark.parametrize("name", list(KEYS))
def test_every_training_option_is_a_key_of_the_configuration(name: str) -> None:
    assert tuple(KEYS[name].split(".")) in set(all_keys(PPOConfig))


def test_peft_s_configuration_becomes_ours() -> None:
    def lora(**fields: Any) -> LoraSection | None:
        return build_config("gpt2", reward=brevity, data="p.jsonl", lora=peft.LoraConfig(**fields)).model.lora

    given = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}
    ours = LoraSection(r=4, alpha=12.0, dropout=0.1, target_modules=["q_proj", "v_proj"])
    assert lora(**given, task_type="CAUSAL_LM") == ours
    assert lora(r=2) == LoraSection(r=2, alpha=8.0, target_modules="all-linear")
    with pytest.raises(ConfigError, match=r"lora=.*: peft's use_dora, use_rslora cannot be set here"):
        lora(use_rslora=True, use_dora=True)


def test_prompts_in_memory_are_stored_by_content(tmp_path: Path) -> None:
    def config(data: Any) -> PPOConfig:
        return build_config("gpt2", reward=brevity, data=data, run={"root": str(tmp_path)})

    rows = [{"prompt": "one", "topic": "a"}, {"prompt": "two", "topic": "b"}]
    both = config({"path": ["hello", "world"], "eval_path": rows, "max_samples": 5})
    assert Path(both.data.path).parent == tmp_path / "data"
    assert pq.read_table(both.data.path).to_pydict() == {"prompt": ["hello", "world"]}
    assert both.data.eval_path is not None
    assert pq.read_table(both.data.eval_path).to_pylist() == rows
    assert config(["hello", "world"]).data.path == both.data.path
    assert config(Path("some.jsonl")).data.path == "some.jsonl"
    assert len(list((tmp_path / "data").iterdir())) == 2


def local_reward() -> Any:
    def shouting(prompt: str, response: str) -> float:
        return float(response.isupper())

    return shouting


def test_a_reward_without_an_import_path_runs_but_is_in_no_file(tmp_path: Path, from_yaml: PPOConfig) -> None:
    reward = RewardComposer(local_reward(), brevity)
    config = build_config(from_yaml, reward=reward, training={"rewards.shouting.weight": 2.0})
    shouting = config.rewards["shouting"]
    assert shouting.code  # type: ignore[union-attr]
    assert shouting.weight == 2.0
    changed = build_config(config, training={"ppo.iterations": 3})
    assert changed.rewards["shouting"].code == shouting.code  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"^rewards\.shouting is defined in a script or notebook \(.*:local_reward"):
        config.to_yaml()
    config.rewards.pop("shouting")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(PPOConfig, [tmp_path / "again.yaml"]) == config


def test_a_trained_policy_is_used_as_it_was_saved(tmp_path: Path, from_yaml: PPOConfig) -> None:
    """Merged, and already rounded: not adapted and rounded again."""
    folder = RunFolder.create(RunSection(root=str(tmp_path), name="run"), "ppo")
    folder.policy.mkdir()
    (folder.policy / "config.json").write_text("{}")
    folder.config_file.write_text(YAML)
    from_yaml.model.quantization = "4bit"
    used = PPOTrainer(from_yaml, resume=folder.path)._current().model
    assert (used.name, used.lora, used.quantization) == (str(folder.policy), None, None)


def test_the_run_s_record_says_what_it_cannot_hold(tmp_path: Path, from_yaml: PPOConfig) -> None:
    config = build_config(from_yaml, reward=local_reward())
    folder = RunFolder(tmp_path)
    folder.write_start(config, "ppo")
    first = folder.config_file.read_text().splitlines()[0]
    assert first.startswith("# rewards.shouting was defined in a script or notebook (test_api_build:local_reward")
    assert load_config(PPOConfig, [folder.config_file]).ppo == config.ppo
    assert len(json.loads(folder.environment_file.read_text())) == 1


def test_what_is_wrong_is_named_with_its_argument(from_yaml: PPOConfig) -> None:
    def problem(**arguments: Any) -> str:
        given: dict[str, Any] = {"reward": brevity, "data": "p.jsonl"} | arguments
        with pytest.raises(ConfigError) as raised:
            build_config(given.pop("model", "gpt2"), **given)
        return str(raised.value)

    assert (
        problem(training={"learnign_rate": 1e-5})
        == "training: unknown option 'learnign_rate' (did you mean learning_rate?)"
    )
    wrong = problem(training=TrainingConfig(learning_rate=-1.0))
    assert wrong == "learner.learning_rate: -1.0 in PPOTrainer(training=...) as learning_rate should be more than 0"
    assert "generation.max_tokens: unknown key" in problem(generation={"max_tokens": 3})
    assert problem(data=None) == "data: missing in PPOTrainer(...)"
    assert problem(reward=None) == "rewards: missing (Reward components by name) in PPOTrainer(...)"
    assert "Manners is a class: pass an instance" in problem(reward=Manners)
    assert "PPOTrainer(lora=...): got int, expected a section or a dict" in problem(lora=8)
    assert "training: got 3" in problem(training=3)


def test_neural_rewards_and_weights_arrive() -> None:
    reward = 0.7 * HuggingFaceRewardModel("org/quality") + 0.3 * HuggingFaceRewardModel("org/safety", normalize=True)
    config = build_config("gpt2", reward=reward, data="p.jsonl")
    weights = {name: section.weight for name, section in config.rewards.items()}
    assert weights == {"hf_org_quality": 0.7, "hf_org_safety": 0.3}
    assert config.rewards["hf_org_safety"].normalize == "running"
