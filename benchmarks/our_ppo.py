"""Our side: one PPO run on Ray and vLLM, its seconds per iteration and rewards."""

import argparse
import time
from pathlib import Path
from typing import Any

from recipes import RECIPES, ppo_config
from side import give_result
from workload import WORKLOADS

from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.ppo import PPOTrainer


class Clock(Callback):
    """Times from the end of one iteration to the end of the next, whatever the trainer does between."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_start(self, trainer: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds model/ and prompts.jsonl; takes runs/")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = ppo_config(
        args.recipe,
        WORKLOADS[args.workload],
        args.folder,
        args.folder / "runs",
        threads=args.threads,
        seed=args.seed,
        iterations=args.iterations,
    )
    clock = Clock()
    result = PPOTrainer(config, callbacks=[clock]).train()
    phases = [name for name in result.history[0] if name.startswith("seconds/")]
    give_result(
        {
            "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
            "rewards": [metrics["reward/mean"] for metrics in result.history],
            "audit_max_gap": max(metrics["audit/max_gap"] for metrics in result.history),
            "phases": {name: [metrics[name] for metrics in result.history] for name in phases},
        }
    )


if __name__ == "__main__":
    main()
