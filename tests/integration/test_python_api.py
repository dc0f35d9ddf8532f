"""A run from Python alone: a composer of this file, a reward model, LoRA, prompts in memory, callbacks, its use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray import (
    Callback,
    Evaluation,
    HuggingFaceRewardModel,
    PPOConfig,
    PPOResult,
    PPOTrainer,
    RewardComposer,
    TrainingConfig,
    llm_reward,
    load_config,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

GREEDY = {"temperature": 0.0, "max_new_tokens": 4}


class Words(RewardComposer):
    """Found by the scoring processes as `test_python_api:Words.<method>`."""

    @llm_reward
    def short(self, prompt: str, response: str) -> float:
        return 1.0 - len(response.split()) / 20

    @llm_reward(normalize="running", on_failure="skip_sample")
    def shape(self, prompt: str, response: str, topic: str) -> dict[str, float | None]:
        if prompt.startswith("w55"):  # one of the held-out prompts
            raise ValueError("no topic here")
        words = response.split()
        return {"variety": len(set(words)) / max(len(words), 1), "topic": float(topic in words) if words else None}


class Witness(Callback):
    """Notes the order of the hooks, samples in the middle of the run, and ends it after two iterations."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.texts: list[str] = []
        self.evaluated: dict[int, Evaluation] = {}

    def on_train_start(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_generation(self, iteration: int, rollouts: Any) -> None:
        self.hooks.append(f"generation {iteration}")

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        self.hooks.append(f"reward {iteration}")

    def on_update(self, iteration: int, metrics: dict[str, float]) -> None:
        self.hooks.append(f"update {iteration}")
        self.texts = self.trainer.generate(PROMPTS, **GREEDY)

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self.hooks.append(f"end {iteration}")
        if iteration == 2:
            self.trainer.request_stop("the witness has seen enough")

    def on_evaluation(self, iteration: int, evaluation: Evaluation) -> None:
        self.hooks.append(f"evaluation {iteration}")
        self.evaluated[iteration] = evaluation

    def on_checkpoint(self, path: Path) -> None:
        self.hooks.append(f"checkpoint {path.name}")


PROMPTS = [f"w{i} w{2 * i}" for i in range(5)]
ROWS = [{"prompt": f"w{i} w{3 * i} w7", "topic": f"w{i}"} for i in range(12)]
HELD_OUT = [{"prompt": f"w{50 + i} w3", "topic": f"w{i}"} for i in range(6)]


@pytest.fixture(scope="module")
def trained(
    ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PPOTrainer, PPOResult, Witness]:
    witness = Witness()
    trainer = PPOTrainer(
        tiny.policy,
        reward=Words(HuggingFaceRewardModel(tiny.reward), reward_weights={"short": 2.0}),
        lora=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
        data={"path": ROWS, "eval_path": HELD_OUT},
        training=TrainingConfig(prompts_per_iteration=8, learning_rate=1e-2, dtype="float32", kl_coef=0),
        generation={"max_new_tokens": 8, "max_context_tokens": 32, "cpu_kv_cache_gib": 0.0625},
        run={"root": str(tmp_path_factory.mktemp("api")), "name": "from-python"},
        callbacks=[witness],
    )
    return trainer, trainer.train(max_iterations=4, save_every=1), witness


def test_the_run_calls_its_hooks_in_order_and_stops_when_asked(trained: tuple[PPOTrainer, PPOResult, Witness]) -> None:
    _, result, witness = trained
    one = ["generation 1", "reward 1", "update 1", "end 1"]
    two = ["generation 2", "reward 2", "update 2", "end 2"]
    checkpoints = [hook for hook in witness.hooks if hook.startswith("checkpoint")]  # come when they are whole
    assert checkpoints == ["checkpoint step-000001", "checkpoint step-000002"]
    assert [hook for hook in witness.hooks if hook not in checkpoints] == ["evaluation 0", *one, *two, "evaluation 2"]
    assert (result.iterations, result.stopped_because) == (2, "the witness has seen enough")
    assert not result.interrupted


def test_the_result_holds_every_component(trained: tuple[PPOTrainer, PPOResult, Witness]) -> None:
    trainer, result, witness = trained
    neural = next(name for name in trainer.config.rewards if name.startswith("hf_"))
    assert list(trainer.config.rewards) == ["short", "shape", neural]
    assert set(result.components) == {"short", "shape", "shape/variety", "shape/topic", neural}
    assert all(np.isfinite(curve).all() and len(curve) == 2 for curve in result.components.values())
    assert result.to_pandas()["reward/mean"].tolist() == [metrics["reward/mean"] for metrics in result.history]
    assert result.before is witness.evaluated[0]
    assert result.after is witness.evaluated[2]
    text = result.summary()
    assert "the witness has seen enough" in text
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80


def test_failures_of_evaluations_are_in_the_quarantine(trained: tuple[PPOTrainer, PPOResult, Witness]) -> None:
    _, result, witness = trained
    lines = [json.loads(line) for line in (result.folder / "quarantine" / "rewards.jsonl").read_text().splitlines()]
    found = [(line["during"], line["iteration"], line["component"], line["prompt_id"]) for line in lines]
    assert found[:2] == [("evaluation", 0, "shape", 5), ("evaluation", 2, "shape", 5)]
    for evaluation in witness.evaluated.values():
        assert np.flatnonzero(np.isnan(evaluation.reward)).tolist() == [5]


def test_its_configuration_is_a_yaml_file(trained: tuple[PPOTrainer, PPOResult, Witness]) -> None:
    trainer, result, _ = trained
    again = load_config(PPOConfig, [result.folder / "config.yaml"])
    assert again == trainer.config
    assert again.to_yaml() == trainer.config.to_yaml()
    assert again.rewards["short"].function == "test_python_api:Words.short"  # type: ignore[union-attr]
    assert again.model.lora is not None
    assert again.model.lora.target_modules == ["down_proj", "q_proj", "v_proj"]


def test_generate_takes_the_policy_in_training_and_evaluate_the_saved_one(
    trained: tuple[PPOTrainer, PPOResult, Witness],
) -> None:
    trainer, result, witness = trained
    greedy = [greedy_answer(result.policy, prompt) for prompt in PROMPTS]
    assert [text.strip() for text in witness.texts] == greedy  # after the last sync
    assert len(set(greedy)) > 1
    evaluation = trainer.evaluate()  # by actors that are started for it
    assert result.after is not None
    assert evaluation.responses == result.after.responses
    np.testing.assert_allclose(evaluation.reward, result.after.reward, atol=1e-5)


def greedy_answer(policy: Path, prompt: str) -> str:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(tokens, do_sample=False, max_new_tokens=GREEDY["max_new_tokens"])
    return str(tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True))
