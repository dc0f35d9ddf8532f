"""The peer's side: TRL's PPOTrainer (trl 1.12, the last release that ships it), with its own loop and defaults.

    .venv-trl/bin/python benchmarks/peer_trl_ppo.py --workload 32x32 --folder DIR --iterations 10

Runs in the peer's own environment and imports nothing of rlhf_ray. Policy, reference and critic start from the same
folder as ours. What is not set here is TRL's default, and ours match it: clip ranges, lambda, k1 in the reward.
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from side import give_result
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]
from workload import WORKLOADS, Workload, read_prompts, vowel_share


class FunctionReward(torch.nn.Module):
    """A Python function in the shape that TRL expects of a reward model: a backbone, and a `score` of its states."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any, response_tokens: int) -> None:
        super().__init__()
        self.tokenizer, self.response_tokens = tokenizer, response_tokens
        self.score = torch.nn.Identity()
        self.means: list[float] = []

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        texts = self.tokenizer.batch_decode(input_ids[:, -self.response_tokens :], skip_special_tokens=True)
        scores = torch.tensor([vowel_share("", text) for text in texts])
        self.means.append(float(scores.mean()))
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)])


class Clock(TrainerCallback):
    """Times from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def settings(workload: Workload, args: argparse.Namespace) -> PPOConfig:
    """One PPO epoch over a single minibatch and micro-batch of all samples, float32, no stop token."""
    return PPOConfig(
        output_dir=str(args.folder / "trl"),
        seed=args.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        total_episodes=args.iterations * workload.samples,
        per_device_train_batch_size=workload.samples,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=workload.samples,
        response_length=workload.response_tokens,
        temperature=1.0,
        stop_token=None,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        kl_coef=args.kl_coef,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds model/ and prompts.jsonl")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kl-coef", type=float, default=0.02)
    args = parser.parse_args()
    workload, model = WORKLOADS[args.workload], args.folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy, reference = (LlamaForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))
    critic = LlamaForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    prompts = Dataset.from_dict({"input_ids": tokenizer(read_prompts(args.folder))["input_ids"]})
    reward, clock = FunctionReward(tokenizer, workload.response_tokens), Clock()
    trainer = PPOTrainer(
        args=settings(workload, args),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(workload.samples)),
        callbacks=[clock],
    )
    trainer.train()
    give_result(
        {
            "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
            "rewards": reward.means,
            "threads": torch.get_num_threads(),
        }
    )


if __name__ == "__main__":
    main()
