"""Files and configurations of runs that take seconds: two-layer models, words for tokens, a few rows of data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import FAMILIES, save_tiny, tokenizer
from transformers import AutoModelForSequenceClassification

from rlhf_ray.config import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.models.reward_stats import RewardStats

PROMPTS = 16

SFT = """
model: {name: MODEL}
data: {path: DATA/demonstrations.jsonl, eval_path: DATA/demonstrations_eval.jsonl}
sft: {epochs: 2, samples_per_step: 8}
learner: {learning_rate: 1.0e-2, dtype: float32, tokens_per_microbatch: 64, schedule: cosine, warmup_steps: 2}
"""
REWARD = """
model: {name: MODEL}
data: {path: DATA/preferences.jsonl, eval_path: DATA/preferences_eval.jsonl}
reward: {epochs: 4, pairs_per_step: 8}
learner: {learning_rate: 1.0e-3, adam_eps: 1.0e-5, dtype: float32, tokens_per_microbatch: 96}
"""
DPO = """
model: {name: MODEL}
data: {path: DATA/preferences.jsonl, eval_path: DATA/preferences_eval.jsonl}
dpo: {epochs: 2, pairs_per_step: 8}
learner: {learning_rate: 1.0e-4, adam_eps: 1.0e-5, dtype: float32, tokens_per_microbatch: 96}
"""
PPO = """
model: {name: MODEL}
data: {path: DATA/prompts.jsonl}
rewards:
  short: {type: function, function: "tiny_rewards:short"}
ppo: {iterations: 2, prompts_per_iteration: 8, samples_per_minibatch: 8, ppo_epochs: 2}
critic: {kind: separate, learning_rate: 1.0e-3}
generation: {max_new_tokens: 8, max_context_tokens: 32, cpu_kv_cache_gib: 0.0625, stream_samples: 3}
learner: {learning_rate: 1.0e-3, dtype: float32, tokens_per_microbatch: 64}
evaluation: {prompts: 0}
tracking: {tensorboard: false}
"""


@dataclass(frozen=True)
class TinyRuns:
    """Where the files are; a configuration of each stage, to be changed by dotted overrides."""

    folder: Path
    policy: str  # Llama
    gpt2: str
    reward: str  # a reward model on the policy's shape

    def sft(self, root: Path, name: str, *overrides: str) -> SFTConfig:
        return load_config(SFTConfig, [self.folder / "sft.yaml"], [*_place(root, name), *overrides])

    def reward_model(self, root: Path, name: str, *overrides: str) -> RewardModelConfig:
        return load_config(RewardModelConfig, [self.folder / "reward.yaml"], [*_place(root, name), *overrides])

    def dpo(self, root: Path, name: str, *overrides: str) -> DPOConfig:
        return load_config(DPOConfig, [self.folder / "dpo.yaml"], [*_place(root, name), *overrides])

    def ppo(self, root: Path, name: str, *overrides: str) -> PPOConfig:
        return load_config(PPOConfig, [self.folder / "ppo.yaml"], [*_place(root, name), *overrides])


def write_tiny_runs(folder: Path) -> TinyRuns:
    """Everything above, below `folder`."""
    policy, gpt2 = save_tiny("llama_untied", folder), save_tiny("gpt2", folder)
    for stage, text in (("sft", SFT), ("reward", REWARD), ("dpo", DPO), ("ppo", PPO)):
        (folder / f"{stage}.yaml").write_text(text.replace("MODEL", policy).replace("DATA", str(folder)))
    _write(folder, "demonstrations", [_demonstration(i) for i in range(32)])
    _write(folder, "demonstrations_eval", [_demonstration(i) for i in range(5)])
    _write(folder, "preferences", [_preference(i) for i in range(32)])
    _write(folder, "preferences_eval", [_preference(i) for i in range(5)])
    _write(folder, "prompts", [{"prompt": _words(i), "number": i, "topic": f"w{i}"} for i in range(PROMPTS)])
    # No reward function fails on numbers divisible by four.
    _write(folder, "prompts_eval", [{"prompt": _words(i), "number": 4 * i, "topic": f"w{i}"} for i in range(6)])
    return TinyRuns(folder, policy, gpt2, _save_reward_model(folder / "reward"))


def _place(root: Path, name: str) -> list[str]:
    return [f"run.root={root}", f"run.name={name}"]


def _words(i: int) -> str:
    return " ".join(f"w{(5 * i + j) % 100}" for j in range(2 + i % 4))


def _demonstration(i: int) -> dict[str, Any]:
    return {"prompt": _words(i), "completion": " ".join(f"w{(i + j) % 7}" for j in range(3 + i % 3))}


def _preference(i: int) -> dict[str, Any]:
    return {"prompt": _words(i), "chosen": f"w{i % 5} w1", "rejected": f"w{60 + i % 5} w70 w{i % 9}"}


def _write(folder: Path, stem: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _save_reward_model(folder: Path) -> str:
    """As `rlhf-ray reward` leaves one: a score head, the policy's tokenizer, the scores' mean and std."""
    torch.manual_seed(1)
    config = FAMILIES["llama_untied"].__class__(**{**FAMILIES["llama_untied"].to_dict(), "num_labels": 1})
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    RewardStats(mean=0.1, std=0.7).save(folder)
    return str(folder)
