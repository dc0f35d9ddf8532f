"""The run of sentiment_gpt2.yaml, in Python: python configs/sentiment_gpt2.py [--tiny]"""

import sys

from rlhf_ray import LoraConfig, PPOTrainer
from rlhf_ray.demo.recipes.sentiment import SentimentRewards
from rlhf_ray.demo.recipes.tiny import tiny_overlay

RECIPE = "sentiment_gpt2"


def build(tiny: bool = False) -> PPOTrainer:
    weights = {"brevity_bonus": 0.5, "positivity_reward": 1.0, "coherence_penalty": 0.5}
    data = {
        "path": "stanfordnlp/imdb",
        "subset": "plain_text",
        "eval_path": "stanfordnlp/imdb",
        "eval_split": "test[:100]+test[-100:]",
        "max_samples": 4000,
        "prompt_column": "text",
        "preprocess": "rlhf_ray.demo.recipes.sentiment:opening",
    }
    batches = {"iterations": 50, "prompts_per_iteration": 64, "samples_per_minibatch": 16, "ppo_epochs": 2}
    keeping = {"evaluate_every": 10, "evaluate_prompts": 200, "save_every": 25, "save_best": True}
    trainer = PPOTrainer(
        "gpt2",
        reward=SentimentRewards(reward_weights=weights),
        lora=LoraConfig(r=8, alpha=16, target_modules=["c_attn", "c_proj"]),
        data=data,
        training=batches | keeping | {"learning_rate": 5e-5, "kl_coef": 0.05},
        generation={"max_new_tokens": 48},
    )
    return PPOTrainer(trainer.config, training=tiny_overlay(RECIPE, "runs/tiny-recipes")) if tiny else trainer


if __name__ == "__main__":
    print(build(tiny="--tiny" in sys.argv).train().summary())
