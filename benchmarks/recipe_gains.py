"""Every recipe's tiny variant, from end to end: what each stage makes better, over several seeds.

    python benchmarks/recipe_gains.py [name ...] [--seeds 3] [--root runs/recipes]

A stage counts as better where the mean of its changes is more than two of their standard errors from zero. With one
seed the error is that of the held-out rows' differences, where the stage keeps them. What is finished and unchanged in
--root is not run again, so that the command goes on where it was stopped.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from gain_row import gain_row
from report import report

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.demo.recipes.tiny import RECIPES, tiny_overlay
from rlhf_ray.trainers.gains import Gain
from rlhf_ray.trainers.rlhf import RLHFTrainer
from rlhf_ray.trainers.stages import STAGES

CONFIGS = Path(__file__).parents[1] / "configs"


def tiny_pipeline(recipe: str, seed: int, root: Path) -> RLHFConfig:
    """The recipe's tiny variant; one that is PPO alone as a pipeline of this stage."""
    file = CONFIGS / f"{recipe}.yaml"
    overrides = [f"{key}={json.dumps(value)}" for key, value in tiny_overlay(recipe, root / "files").items()]
    place = {"name": f"{recipe}-{seed}", "root": str(root), "seed": seed}
    if is_pipeline(file):
        return load_config(RLHFConfig, [file], [*overrides, *(f"run.{key}={value}" for key, value in place.items())])
    return RLHFConfig.model_validate({"run": place, "ppo": load_config(PPOConfig, [file], overrides)})


def is_pipeline(file: Path) -> bool:
    """Whether the file holds stages; a PPO configuration has its `data` at the top."""
    return not any(line.startswith("data:") for line in file.read_text().splitlines())


def gains(config: RLHFConfig) -> dict[str, Gain]:
    """Stage -> what it changed on held-out data; the pipeline runs as far as it must."""
    result = RLHFTrainer(config).train()
    found = {stage: STAGES[stage].gain(getattr(result, stage)) for stage in config.stages}
    return {stage: gain for stage, gain in found.items() if gain is not None}


def main() -> int:
    parser = argparse.ArgumentParser(description="What each stage of each tiny recipe gains.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which recipes; default: all of {', '.join(RECIPES)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path("runs/recipes"))
    arguments = parser.parse_args()
    recipes = arguments.names or RECIPES
    if unknown := sorted(set(recipes) - set(RECIPES)):
        parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    rows = []
    for recipe in recipes:
        by_stage: dict[str, list[Gain]] = defaultdict(list)
        for seed in range(arguments.seeds):
            for stage, gain in gains(tiny_pipeline(recipe, seed, arguments.root.absolute())).items():
                by_stage[stage].append(gain)
        for stage, found in by_stage.items():
            rows.append({"recipe": recipe, "stage": stage, "measure": found[0].measure} | gain_row(found))
    report("recipe_gains", rows)
    trained = [one for one in rows if one["stage"] != "evaluation"]
    worse = [f"{one['recipe']}/{one['stage']}" for one in trained if one["better by"] <= 0 or one["errors"] <= 2]
    if worse:
        print(f"not better by two standard errors: {', '.join(worse)}", file=sys.stderr)
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
