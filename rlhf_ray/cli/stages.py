"""`rlhf-ray sft`, `reward`, `dpo` and `ppo`: one configuration, one trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rlhf_ray.cli.recipe import tiny_option, tiny_overrides
from rlhf_ray.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_ray.config.base import Section

STAGES = ("sft", "reward", "dpo", "ppo", "eval", "pipeline")

Function = TypeVar("Function", bound=Callable[..., Any])


def config_options(command: Function) -> Function:
    """`--config FILE` (several are merged) and dotted overrides."""
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.option(
        "-c",
        "--config",
        "files",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        help="YAML configuration; give it again to merge further files over the first.",
    )(command)


def resume_option(command: Function) -> Function:
    return click.option(
        "--resume",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Folder of an earlier run: continue it from its last checkpoint, with its configuration.",
    )(command)


def config_class(stage: str) -> "type[Section]":
    """The configuration class of a stage."""
    from rlhf_ray.config import DPOConfig, EvalConfig, PPOConfig, RewardModelConfig, SFTConfig
    from rlhf_ray.config.rlhf import RLHFConfig

    classes: dict[str, type[Section]] = {
        "sft": SFTConfig,
        "reward": RewardModelConfig,
        "dpo": DPOConfig,
        "ppo": PPOConfig,
        "eval": EvalConfig,
        "pipeline": RLHFConfig,
    }
    return classes[stage]


@click.command()
@config_options
@resume_option
def sft(files: tuple[Path, ...], overrides: tuple[str, ...], resume: Path | None) -> None:
    """Supervised fine-tuning on demonstrations.

    \b
    rlhf-ray sft --config configs/sft.yaml learner.learning_rate=1e-5
    rlhf-ray sft --resume runs/sft-20260101-120000
    """
    config = _load("sft", files, overrides, resume)
    from rlhf_ray.trainers.sft import SFTTrainer

    SFTTrainer(config, resume=resume).train()


@click.command()
@config_options
@resume_option
def reward(files: tuple[Path, ...], overrides: tuple[str, ...], resume: Path | None) -> None:
    """A reward model from preference pairs.

    \b
    rlhf-ray reward --config configs/reward.yaml data.path=pairs.jsonl
    rlhf-ray reward --resume runs/reward-20260101-120000
    """
    config = _load("reward", files, overrides, resume)
    from rlhf_ray.trainers.reward_model import RewardTrainer

    RewardTrainer(config, resume=resume).train()


@click.command()
@config_options
@resume_option
def dpo(files: tuple[Path, ...], overrides: tuple[str, ...], resume: Path | None) -> None:
    """Direct preference optimisation: a policy from preference pairs, without a reward model.

    \b
    rlhf-ray dpo --config configs/dpo.yaml model.name=runs/sft/policy data.path=pairs.jsonl
    rlhf-ray dpo --resume runs/dpo-20260101-120000
    """
    config = _load("dpo", files, overrides, resume)
    from rlhf_ray.trainers.dpo import DPOTrainer

    DPOTrainer(config, resume=resume).train()


@click.command()
@config_options
@resume_option
@tiny_option
def ppo(files: tuple[Path, ...], overrides: tuple[str, ...], resume: Path | None, tiny: bool) -> None:
    """PPO towards one or several rewards, on Ray with vLLM rollouts.

    \b
    rlhf-ray ppo --config configs/ppo.yaml model.name=Qwen/Qwen2.5-0.5B-Instruct
    rlhf-ray ppo --config configs/sentiment_gpt2.yaml --tiny
    rlhf-ray ppo --config base.yaml --config mine.yaml ppo.iterations=200
    rlhf-ray ppo --resume runs/ppo-20260101-120000

    All keys: rlhf-ray config schema ppo. What a configuration comes to: rlhf-ray config show ppo --config FILE.
    """
    if tiny:
        overrides = (*tiny_overrides(files, overrides, config_class("ppo")), *overrides)
    config = _load("ppo", files, overrides, resume)
    from rlhf_ray.trainers.ppo import PPOTrainer

    PPOTrainer(config, resume=resume).train()


def _load(stage: str, files: tuple[Path, ...], overrides: tuple[str, ...], resume: Path | None) -> Any:
    """The stage's configuration: from the files, or from the run that is resumed; overrides apply to both."""
    from rlhf_ray.config.load import load_config

    if resume is not None and not files:
        from rlhf_ray.trainers.run_folder import RunFolder

        files = (RunFolder.open(resume).config_file,)
    if not files and not overrides:
        raise ConfigError(f"nothing to run: give --config FILE, or --resume RUN (see rlhf-ray {stage} --help)")
    return load_config(config_class(stage), files, overrides)
