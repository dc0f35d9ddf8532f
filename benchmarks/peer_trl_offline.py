"""The peer's side: TRL's SFTTrainer, RewardTrainer or DPOTrainer, with its own loop and defaults.

    .venv-trl/bin/python benchmarks/peer_trl_offline.py --stage dpo --folder DIR --steps 10

Runs in the peer's own environment and imports nothing of rlhf_ray. What is not set here is TRL's default: loss on the
completion only, a copy of the model as DPO's reference, AdamW, gradients clipped at 1.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets import Dataset
from offline_workload import BETA, LEARNING_RATE, MAX_TOKENS, ROWS_PER_STEP, STAGES, read_rows
from peer_trl_ppo import Clock
from side import give_result
from transformers import AutoTokenizer
from trl import (  # type: ignore[import-not-found]
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, {}),
    "reward": (RewardTrainer, RewardConfig, {}),
    "dpo": (DPOTrainer, DPOConfig, {"beta": BETA}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds model/ and the rows")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trainer_class, config_class, options = TRAINERS[args.stage]
    settings = config_class(
        output_dir=str(args.folder / "trl"),
        seed=args.seed,
        use_cpu=True,
        bf16=args.bf16,
        gradient_checkpointing=False,
        max_steps=args.steps,
        max_length=MAX_TOKENS,
        per_device_train_batch_size=ROWS_PER_STEP,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **options,
    )
    model, clock = str(args.folder / "model"), Clock()
    trainer = trainer_class(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(read_rows(args.folder, args.stage)),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[clock],
    )
    trainer.train()
    give_result(
        {
            "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        }
    )


if __name__ == "__main__":
    main()
