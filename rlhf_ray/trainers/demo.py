"""The demo: SFT, reward model and PPO from nothing, on docstrings of the running Python's standard library.

    rlhf-ray demo

Small sizes, nothing else is special: the same trainers, actors, engine and syncs as for a large model. Its
configurations are in `rlhf_ray/demo/configs/`; the run folders keep them resolved, so that any stage can be run again
by `rlhf-ray <stage> --config`.
"""

import time
from importlib import resources
from pathlib import Path

from rlhf_ray.actors.runtime import connect, disconnect
from rlhf_ray.config import PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.config.common import ResourcesSection, RunSection
from rlhf_ray.config.load import load_config
from rlhf_ray.demo.prepare import DemoFiles, prepare
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer
from rlhf_ray.trainers.reward_model import RewardTrainer
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.sft import SFTTrainer
from rlhf_ray.trainers.supervised import SupervisedTrainer

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
) -> PPOResult:
    """All stages in one folder, `<root>/<name>/{data,sft,reward,ppo}`; the result of the last."""
    started, console = time.monotonic(), console or Console()
    folder = RunFolder.create(RunSection(root=str(root), name=name), "demo").path
    console.stage("Data", "docstrings of this Python's standard library")
    with console.progress("reading the standard library, training a tokenizer"):
        files = prepare(folder / "data", seed)
    console.facts({stem.replace("_", " "): f"{rows:,} rows" for stem, rows in files.rows.items()})
    cluster = connect(ResourcesSection())
    try:
        result = _stages(files, folder, seed, quick, console)
    finally:
        disconnect(cluster)
    minutes = (time.monotonic() - started) / 60
    console.note(f"demo finished in {minutes:.1f} minutes; everything is in {folder}")
    console.note(f"go on: rlhf-ray ppo --resume {folder / 'ppo'} ppo.iterations=60")
    return result


def _stages(files: DemoFiles, folder: Path, seed: int, quick: bool, console: Console) -> PPOResult:
    def overrides(stage: str, **keys: object) -> list[str]:
        places = [f"{key.replace('__', '.')}={value}" for key, value in keys.items()]
        common = [f"run.root={folder}", f"run.name={stage}", f"run.seed={seed}"]
        return [*common, *places, *(QUICK[stage] if quick else [])]

    sft = overrides(
        "sft", model__name=files.base, data__path=files.demonstrations, data__eval_path=files.demonstrations_eval
    )
    _run_through(SFTTrainer(load_config(SFTConfig, [_packaged("sft")], sft), console=console))
    reward = overrides(
        "reward",
        model__name=folder / "sft" / "policy",
        data__path=files.preferences,
        data__eval_path=files.preferences_eval,
    )
    _run_through(RewardTrainer(load_config(RewardModelConfig, [_packaged("reward")], reward), console=console))
    ppo = overrides(
        "ppo",
        model__name=folder / "sft" / "policy",
        data__path=files.prompts,
        data__eval_path=files.prompts_eval,
        rewards__quality__model=folder / "reward" / "policy",
    )
    return PPOTrainer(load_config(PPOConfig, [_packaged("ppo")], ppo), console=console).train()


def _run_through(trainer: SupervisedTrainer) -> None:
    """Train; a stage that Ctrl-C ended early ends the demo."""
    if trainer.train().interrupted:
        raise KeyboardInterrupt


def _packaged(stage: str) -> Path:
    return Path(str(resources.files("rlhf_ray.demo") / "configs" / f"{stage}.yaml"))
