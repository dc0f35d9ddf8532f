"""instruction_following_llama2_7b.yaml in Python: python configs/instruction_following_llama2_7b.py [--tiny]"""

import sys

from rlhf_ray import HuggingFaceRewardModel, LoraConfig, PPOTrainer
from rlhf_ray.demo.recipes.instruction import InstructionRewards
from rlhf_ray.demo.recipes.tiny import tiny_overlay

RECIPE, ALPACA = "instruction_following_llama2_7b", "tatsu-lab/alpaca"
JUDGE = "OpenAssistant/reward-model-deberta-v3-large-v2"


def build(tiny: bool = False) -> PPOTrainer:
    weights = {"format_compliance": 0.3, "instruction_acknowledgment": 0.2, "response_structure": 0.2}
    judge = HuggingFaceRewardModel(JUDGE, max_length=512, template="pair", activation="sigmoid")
    data = {"path": ALPACA, "split": "train[1000:]", "eval_path": ALPACA, "eval_split": "train[:1000]"}
    reading = {
        "prompt_column": "instruction",
        "preprocess": "rlhf_ray.demo.recipes.instruction:with_input",
        "chat_template": "alpaca",
        "too_long": "drop",
    }
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    batches = {"iterations": 100, "prompts_per_iteration": 64, "samples_per_minibatch": 16, "ppo_epochs": 2}
    keeping = {"evaluate_every": 10, "evaluate_prompts": 200, "save_every": 25, "save_best": True}
    stop = {"stop_kl": 0.15, "early_stop.kl_per": "token", "stop_kl_patience": 10}
    trainer = PPOTrainer(
        {"name": "meta-llama/Llama-2-7b-hf", "gradient_checkpointing": True},
        reward=InstructionRewards(reward_weights=weights) + judge,
        lora=LoraConfig(r=16, alpha=32, target_modules=layers),
        data=data | reading,
        training=batches | keeping | stop | {"learning_rate": 1e-5, "kl_coef": 0.05},
        generation={"max_new_tokens": 256},
    )
    return PPOTrainer(trainer.config, training=tiny_overlay(RECIPE, "runs/tiny-recipes")) if tiny else trainer


if __name__ == "__main__":
    print(build(tiny="--tiny" in sys.argv).train().summary())
