"""Whether each advantage estimator learns the demo task: reward curves in one plot, gains on held-out prompts.

    python benchmarks/bench_estimators.py                                    # all of them, three seeds each
    python benchmarks/bench_estimators.py --estimators grpo rloo --seeds 1 --iterations 10

The demo's data, SFT stage and reward model are made once (or taken from `--demo`, the folder of a finished demo); then
every estimator starts its PPO runs from them, with the demo's own PPO configuration. An iteration has 128 samples for
all: one for each of 128 prompts, or four for each of 32 where responses to one prompt are compared. Apart from that and
the critic nothing differs, so the learning rate is nobody's best. Writes estimators.json, .png and .html.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from curves import Curves, draw
from gain_row import gain_row
from report import RESULTS, report

from rlhf_ray.actors.runtime import connect, disconnect
from rlhf_ray.config import PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.config.algorithm import ESTIMATORS
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.config.load import load_config
from rlhf_ray.demo.prepare import prepare
from rlhf_ray.trainers.gains import Gain, ppo_gain
from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer
from rlhf_ray.trainers.reward_model import RewardTrainer
from rlhf_ray.trainers.sft import SFTTrainer

SAMPLES, SAMPLES_PER_PROMPT = 128, 4
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each estimator")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument(
        "--demo", type=Path, help="folder of a finished `rlhf-ray demo`, whose stages serve as the start"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="estimators-") as temporary:
        cluster = connect(ResourcesSection())
        try:
            start = args.demo or make_start(Path(temporary) / "demo")
            runs = {
                name: [run(name, seed, args.iterations, start, Path(temporary)) for seed in range(args.seeds)]
                for name in args.estimators
            }
        finally:
            disconnect(cluster)
    rows = [row(name, seeds) for name, seeds in runs.items()]
    report("estimators", rows, args.out, {"iterations": args.iterations, "runs": runs})
    draw(curves(runs), rows, args.out / "estimators")


def make_start(folder: Path) -> Path:
    """The demo's data, SFT policy and reward model, laid out as `rlhf-ray demo` does."""
    files = prepare(folder / "data")
    place = [f"run.root={folder}", "run.seed=0"]
    sft = [f"model.name={files.base}", f"data.path={files.demonstrations}", "run.name=sft"]
    SFTTrainer(load_config(SFTConfig, [packaged("sft")], [*place, *sft])).train()
    reward = [f"model.name={folder / 'sft' / 'policy'}", f"data.path={files.preferences}", "run.name=reward_model"]
    RewardTrainer(load_config(RewardModelConfig, [packaged("reward")], [*place, *reward])).train()
    return folder


def run(name: str, seed: int, iterations: int, start: Path, folder: Path) -> Run:
    """One PPO run: its curves and its mean held-out rewards before and after."""
    grouped = ESTIMATORS[name].grouped
    samples_per_prompt = SAMPLES_PER_PROMPT if grouped else 1
    overrides = [
        f"run.root={folder}",
        f"run.name={name}-{seed}",
        f"run.seed={seed}",
        f"model.name={start / 'sft' / 'policy'}",
        f"data.path={start / 'data' / 'prompts.jsonl'}",
        f"data.eval_path={start / 'data' / 'prompts_eval.jsonl'}",
        f"rewards.quality.model={start / 'reward_model' / 'policy'}",
        f"ppo.advantage={name}",
        f"ppo.iterations={iterations}",
        f"ppo.prompts_per_iteration={SAMPLES // samples_per_prompt}",
        f"ppo.samples_per_prompt={samples_per_prompt}",
        "critic.kind=auto",
        "checkpoint.every=0",
        "tracking.tensorboard=false",
    ]
    started = time.monotonic()
    result = PPOTrainer(load_config(PPOConfig, [packaged("ppo")], overrides)).train()
    return describe(result) | {"seconds": time.monotonic() - started}


def describe(result: PPOResult) -> Run:
    """What is kept of a run, as JSON."""
    gain = ppo_gain(result)
    assert gain is not None
    kept = {"reward": "reward/mean", "kl": "kl/mean", "length": "response/length_mean", "seconds": "seconds/total"}
    return {
        "gain": asdict(gain),
        "curves": {name: result.curves[metric].tolist() for name, metric in kept.items()},
    }


def row(name: str, runs: list[Run]) -> Run:
    """An estimator's gain on held-out prompts, and where its runs ended."""
    ends = {
        "KL": statistics.mean(run["curves"]["kl"][-1] for run in runs),
        "tokens": statistics.mean(run["curves"]["length"][-1] for run in runs),
        "s/iteration": statistics.median(second for run in runs for second in run["curves"]["seconds"]),
    }
    return {"estimator": name} | gain_row([Gain(**run["gain"]) for run in runs]) | ends


def curves(runs: dict[str, list[Run]]) -> Curves:
    """Estimator -> mean reward of every iteration, for each seed."""
    return {name: [run["curves"]["reward"] for run in seeds] for name, seeds in runs.items()}


def packaged(stage: str) -> Path:
    """The demo's configuration of a stage."""
    return Path(str(resources.files("rlhf_ray.demo") / "configs" / f"{stage}.yaml"))


if __name__ == "__main__":
    main()
