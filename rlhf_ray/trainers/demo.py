"""The demo: SFT, reward model and PPO from nothing, on docstrings of the running Python's standard library.

    rlhf-ray demo

Small sizes, nothing else is special: the same trainers, actors, engine and syncs as for a large model. Its
configurations are in `rlhf_ray/demo/configs/`; the run folders keep them resolved, so that any stage can be run again
by `rlhf-ray <stage> --config`.
"""

import time
from importlib import resources
from pathlib import Path
from typing import TypeVar

from rlhf_ray.config import PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.demo.prepare import DemoFiles, prepare
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.rlhf import RLHFResult, RLHFTrainer
from rlhf_ray.trainers.run_folder import RunFolder

C = TypeVar("C", SFTConfig, RewardModelConfig, PPOConfig)

#: `--quick`: shows that everything runs, not that it learns.
QUICK = {
    "sft": ["sft.epochs=1", "data.max_samples=480"],
    "reward": ["reward.epochs=1", "data.max_samples=240"],
    "ppo": [
        "ppo.iterations=2",
        "ppo.prompts_per_iteration=32",
        "ppo.samples_per_minibatch=16",
        "evaluation.prompts=32",
    ],
}


def run_demo(
    root: Path = Path("runs"),
    name: str | None = None,
    seed: int = 0,
    quick: bool = False,
    console: Console | None = None,
) -> RLHFResult:
    """All stages in one folder, `<root>/<name>/{data,sft,reward_model,ppo}`."""
    started, console = time.monotonic(), console or Console()
    folder = RunFolder.create(RunSection(root=str(root), name=name), "demo").path
    console.stage("Data", "docstrings of this Python's standard library")
    with console.progress("reading the standard library, training a tokenizer"):
        files = prepare(folder / "data", seed)
    console.facts({stem.replace("_", " "): f"{rows:,} rows" for stem, rows in files.rows.items()})
    result = RLHFTrainer(_config(files, folder, seed, quick), console=console).train()
    if result.ppo is None:  # Ctrl-C ended an earlier stage
        raise KeyboardInterrupt
    minutes = (time.monotonic() - started) / 60
    console.note(f"demo finished in {minutes:.1f} minutes; everything is in {folder}")
    console.note(f"go on: rlhf-ray ppo --resume {folder / 'ppo'} ppo.iterations=60")
    return result


def _config(files: DemoFiles, folder: Path, seed: int, quick: bool) -> RLHFConfig:
    def of(stage: str, config_class: type[C], data: Path, held_out: Path, *places: str) -> C:
        packaged = Path(str(resources.files("rlhf_ray.demo") / "configs" / f"{stage}.yaml"))
        overrides = [f"run.seed={seed}", f"data.path={data}", f"data.eval_path={held_out}", *places]
        return load_config(config_class, [packaged], overrides + (QUICK[stage] if quick else []))

    model = f"model.name={files.base}"
    return RLHFConfig(
        run=RunSection(root=str(folder.parent), name=folder.name),
        sft=of("sft", SFTConfig, files.demonstrations, files.demonstrations_eval, model),
        reward_model=of("reward", RewardModelConfig, files.preferences, files.preferences_eval),
        ppo=of("ppo", PPOConfig, files.prompts, files.prompts_eval),
    )
