"""PPO runs that are to meet faults: every kind of actor, random models of a given size, and where actors may die."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from models import random_llama, random_reward_model
from side import HERE, MARK

from rlhf_ray.config import PPOConfig
from rlhf_ray.trainers.fault_schedule import Hit

VOCABULARY, CONTEXT, PROMPTS = 512, 128, 64
SIZES = {"tiny": {"hidden": 64, "layers": 2}, "4.5M": {"hidden": 256, "layers": 4}}

#: one death of each kind of actor, where it hurts
DEATHS = (
    Hit(0, "generator/0", "generate"),
    Hit(0, "generator/0", "load_bucket"),
    Hit(0, "reward/brevity/0", "score"),
    Hit(0, "reward/quality/0", "score"),
    Hit(0, "reference/0", "logprobs"),
    Hit(0, "learner/0", "update"),
    Hit(0, "learner/0", "publish"),
    Hit(0, "learner/0", "save"),
    Hit(0, "writer/0", "write"),
)


def mark_processes() -> str:
    """A mark that all processes started from here inherit, as they find the reward functions of this folder."""
    os.environ[MARK] = mark = uuid.uuid4().hex
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return mark


def faulty_ppo(folder: Path, size: str, iterations: int, **sections: dict[str, Any]) -> PPOConfig:
    """A run in `folder`, with a generator, two scorers, a reference, a learner rank and a writer."""
    shape = {**SIZES[size], "vocabulary": VOCABULARY, "context": CONTEXT}
    policy, _ = random_llama(folder / "policy", **shape)
    quality, _ = random_reward_model(folder / "quality", **shape)
    prompts = [" ".join(f"w{(7 * i + j) % 500}" for j in range(4 + i % 8)) for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    values: dict[str, dict[str, Any]] = {
        "run": {"root": str(folder), "name": "run"},
        "model": {"name": policy},
        "data": {"path": str(folder / "prompts.jsonl"), "chat_template": "none"},
        "rewards": {
            "brevity": {"type": "function", "function": "reward_functions:brevity"},
            "quality": {"type": "neural", "model": quality, "weight": 0.1},
        },
        "ppo": {"iterations": iterations, "prompts_per_iteration": 16, "samples_per_minibatch": 8},
        "generation": {"max_new_tokens": 16, "cpu_kv_cache_gib": 0.0625, "stream_samples": 4},
        "learner": {"learning_rate": 1e-5, "dtype": "float32"},
        "checkpoint": {"every": 5},
        "evaluation": {"prompts": 0},
        "resources": {"restart_window_s": 1.0},  # no death makes the next one's restart wait
        "tracking": {"tensorboard": False},
    }
    return PPOConfig.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in values | sections})
