"""Our side of the offline comparisons: one SFT, reward-model or DPO run on Ray, its seconds per step and losses."""

import argparse
import time
from pathlib import Path
from typing import Any

from offline_workload import BETA, LEARNING_RATE, MAX_TOKENS, ROWS_PER_STEP, STAGES, data_file
from our_ppo import Clock
from side import give_result

from rlhf_ray import DPOTrainer, RewardTrainer, SFTTrainer
from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.trainers.supervised import SupervisedTrainer

COMMON = {"learner.adam_beta2": 0.999, "dtype": "float32"}  # Adam as the peer has it
PACKED = COMMON | {"packing": True, "tokens_per_microbatch": 4096, "model.attn_implementation": "eager"}
RECIPES: dict[str, dict[str, Any]] = {
    # Micro-batches of about twenty rows of like length: of 32 rows in one batch more than half would be padding.
    "like-for-like": COMMON | {"tokens_per_microbatch": 1024},
    "packed": PACKED,
    "recommended": PACKED | {"dtype": "bfloat16"},
}
TRAINERS: dict[str, type[SupervisedTrainer]] = {"sft": SFTTrainer, "reward": RewardTrainer, "dpo": DPOTrainer}
LOSSES = {"sft": "loss/sft", "reward": "loss/pairwise", "dpo": "loss/dpo"}


def timed(trainer: type[SupervisedTrainer]) -> type[SupervisedTrainer]:
    """`trainer`, which also notes the seconds that its objective takes before the first step."""

    class Timed(trainer):  # type: ignore[misc, valid-type]
        preparing_s = 0.0

        def start_objective(self, learner: LearnerRanks, table: Any, eval_table: Any) -> None:
            started = time.perf_counter()
            super().start_objective(learner, table, eval_table)
            self.preparing_s = time.perf_counter() - started

    return Timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds model/ and the rows; takes runs/")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = "pairs_per_step" if args.stage != "sft" else "samples_per_step"
    options = {rows: ROWS_PER_STEP, "learning_rate": LEARNING_RATE, "seed": args.seed}
    options |= {"resources.threads": args.threads, "tracking.tensorboard": False}
    options |= {"beta": BETA} if args.stage == "dpo" else {}
    options |= RECIPES[args.recipe]
    clock = Clock()
    trainer = timed(TRAINERS[args.stage])(
        args.folder / "model",
        data={"path": str(data_file(args.folder, args.stage)), "chat_template": "none", "max_tokens": MAX_TOKENS},
        training=options,
        run={"root": str(args.folder / "runs")},
        callbacks=[clock],
    )
    result = trainer.train()
    give_result(
        {
            "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
            # The reference pass; other stages only set up, as the peer does before its first step.
            "preparing_s": trainer.preparing_s if args.stage == "dpo" else 0.0,
            "losses": [metrics[LOSSES[args.stage]] for metrics in result.history],
        }
    )


if __name__ == "__main__":
    main()
