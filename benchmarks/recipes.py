"""Our side's configurations: the same algorithm settings as the peer's script, or what we recommend on a CPU."""

from pathlib import Path
from typing import Any

import yaml
from workload import Workload

from rlhf_ray.config import PPOConfig

LEARNING_RATE, KL_COEF = 1e-3, 0.02

#: float32, a critic of its own, one PPO epoch over one minibatch, Adam as the peer has it, no gradient clipping.
LIKE_FOR_LIKE: dict[str, Any] = {
    "learner": {"dtype": "float32", "adam_beta2": 0.999, "max_grad_norm": 1e9},
    "critic": {"kind": "separate"},
}
#: configs/cpu_fast.yaml, with the dtype that it finds on processors that have bfloat16.
CPU_FAST: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "configs" / "cpu_fast.yaml").read_text())
RECOMMENDED = CPU_FAST | {"learner": CPU_FAST["learner"] | {"dtype": "bfloat16"}}

RECIPES = {"like-for-like": LIKE_FOR_LIKE, "recommended": RECOMMENDED}


def ppo_config(
    recipe: str, workload: Workload, folder: Path, runs: Path, *, threads: int, seed: int, iterations: int
) -> PPOConfig:
    """`recipe` on `workload`, with the model and prompts in `folder`; the run folder comes to lie in `runs`."""
    chosen = RECIPES[recipe]
    length = workload.response_tokens
    return PPOConfig.model_validate(
        {
            "run": {"root": str(runs), "seed": seed},
            "model": {"name": str(folder / "model"), **chosen.get("model", {})},
            "data": {"path": str(folder / "prompts.jsonl"), "chat_template": "none"},
            "rewards": {"vowels": {"type": "function", "function": "workload:vowel_share"}},
            "ppo": {"iterations": iterations, "prompts_per_iteration": workload.samples},
            "kl": {"coef": KL_COEF},
            "generation": {"max_new_tokens": length, "min_new_tokens": length},
            "resources": {"threads": threads},
            "tracking": {"tensorboard": False},
            "critic": chosen["critic"],
            "learner": {"learning_rate": LEARNING_RATE, **chosen["learner"]},
        }
    )
