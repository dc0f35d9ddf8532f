"""What a checkpoint every 5 iterations costs the demo's PPO, as a share of an iteration.

    python benchmarks/bench_checkpoint.py                    # six rounds, after a quick SFT and reward model
    python benchmarks/bench_checkpoint.py --synchronous      # with checkpoint.asynchronous=false

One run that saves every 10 iterations: the 5 from a checkpoint on pay for it (the copy in the training path, the
writing beside the next ones), the 5 after them pay nothing. "overhead" is the median over the rounds of the one five
against the other; "waits" is what the training path alone waits for, counted directly.
"""

import argparse
import statistics
import tempfile
import time
from importlib import resources
from pathlib import Path

from report import RESULTS, report

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.checkpoint import checkpoint_folders
from rlhf_ray.trainers.demo import run_demo
from rlhf_ray.trainers.manifest import Manifest
from rlhf_ray.trainers.ppo import PPOTrainer

EVERY = 5  # iterations between two checkpoints, as far as the cost is concerned
WARM_UP = 4 * EVERY  # with the first checkpoint, which finds the memory for its copy


class Clock(Callback):
    """When each iteration ended, before its checkpoint."""

    def __init__(self) -> None:
        self.ended: dict[int, float] = {}

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self.ended[iteration] = time.perf_counter()

    def seconds(self, first: int) -> float:
        """From the end of iteration `first` to that of the one `EVERY` later."""
        return self.ended[first + EVERY] - self.ended[first]


class TimedPPO(PPOTrainer):
    """Notes what the training path waits for a checkpoint."""

    waits: list[float]

    def _checkpoint(self, iterations: int) -> None:
        started = time.perf_counter()
        super()._checkpoint(iterations)
        self.waits.append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--synchronous", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as temporary:
        demo = run_demo(Path(temporary), "demo", quick=True).folder
        config = ppo(demo, WARM_UP + 2 * EVERY * args.rounds, not args.synchronous)
        clock = Clock()
        trainer = TimedPPO(config, callbacks=[clock])
        trainer.waits = []
        run = trainer.train().folder
        newest = Manifest.read(list(checkpoint_folders(run / "checkpoints").values())[-1])
    starts = range(WARM_UP, WARM_UP + 2 * EVERY * args.rounds, 2 * EVERY)
    paid = [clock.seconds(start) for start in starts]
    free = [clock.seconds(start + EVERY) for start in starts]
    overhead = [with_it / without - 1 for with_it, without in zip(paid, free, strict=True)]
    iteration, waits = statistics.median(free) / EVERY, statistics.median(trainer.waits[1:])
    row = {
        "writing": "training waits" if args.synchronous else "beside the training",
        "MiB": newest.bytes / 2**20,
        "iteration s": iteration,
        "waits s": waits,
        "waits %": 100 * waits / (EVERY * iteration),
        "overhead %": 100 * statistics.median(overhead),
    }
    report("checkpoint", [row], args.out, {"paid_s": paid, "free_s": free, "waits_s": trainer.waits})


def ppo(demo: Path, iterations: int, asynchronous: bool) -> PPOConfig:
    """The demo's own PPO, on what its quick stages left."""
    packaged = Path(str(resources.files("rlhf_ray.demo") / "configs" / "ppo.yaml"))
    changes = {
        "run.root": demo,
        "run.name": "measured",
        "model.name": demo / "sft" / "policy",
        "rewards.quality.model": demo / "reward_model" / "policy",
        "data.path": demo / "data" / "prompts.jsonl",
        "data.eval_path": "null",
        "ppo.iterations": iterations,
        "checkpoint.every": 2 * EVERY,
        "checkpoint.asynchronous": str(asynchronous).lower(),
    }
    return load_config(PPOConfig, [packaged], [f"{key}={value}" for key, value in changes.items()])


if __name__ == "__main__":
    main()
