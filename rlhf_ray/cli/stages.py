"""`rlhf-ray sft`, `reward`, `dpo` and `ppo`: one configuration, one trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rlhf_ray.cli.recipe import tiny_option, tiny_overrides
from rlhf_ray.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_ray.config.base import Section

#: In place of a run's folder: find it.
AUTO = "auto"
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
        metavar="RUN|auto",
        help="Folder of an earlier run: continue it from its last checkpoint, with its configuration. auto, with "
        "--config: continue the unfinished run of this configuration, or start one (for job managers).",
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
def sft(files: tuple[Path, ...], overrides: tuple[str, ...], resume: str | None) -> None:
    """Supervised fine-tuning on demonstrations.

    \b
    rlhf-ray sft --config configs/sft.yaml learner.learning_rate=1e-5
    rlhf-ray sft --resume runs/sft-20260101-120000
    """
    config, run = _load("sft", files, overrides, resume)
    from rlhf_ray.trainers.sft import SFTTrainer

    SFTTrainer(config, resume=run).train()


@click.command()
@config_options
@resume_option
def reward(files: tuple[Path, ...], overrides: tuple[str, ...], resume: str | None) -> None:
    """A reward model from preference pairs.

    \b
    rlhf-ray reward --config configs/reward.yaml data.path=pairs.jsonl
    rlhf-ray reward --resume runs/reward-20260101-120000
    """
    config, run = _load("reward", files, overrides, resume)
    from rlhf_ray.trainers.reward_model import RewardTrainer

    RewardTrainer(config, resume=run).train()


@click.command()
@config_options
@resume_option
def dpo(files: tuple[Path, ...], overrides: tuple[str, ...], resume: str | None) -> None:
    """Direct preference optimisation: a policy from preference pairs, without a reward model.

    \b
    rlhf-ray dpo --config configs/dpo.yaml model.name=runs/sft/policy data.path=pairs.jsonl
    rlhf-ray dpo --resume runs/dpo-20260101-120000
    """
    config, run = _load("dpo", files, overrides, resume)
    from rlhf_ray.trainers.dpo import DPOTrainer

    DPOTrainer(config, resume=run).train()


@click.command()
@config_options
@resume_option
@tiny_option
def ppo(files: tuple[Path, ...], overrides: tuple[str, ...], resume: str | None, tiny: bool) -> None:
    """PPO towards one or several rewards, on Ray with vLLM rollouts.

    \b
    rlhf-ray ppo --config configs/ppo.yaml model.name=Qwen/Qwen2.5-0.5B-Instruct
    rlhf-ray ppo --config configs/sentiment_gpt2.yaml --tiny
    rlhf-ray ppo --config base.yaml --config mine.yaml ppo.iterations=200
    rlhf-ray ppo --resume runs/ppo-20260101-120000
    rlhf-ray ppo --config mine.yaml --resume auto         # the same command starts a run and goes on with it

    All keys: rlhf-ray config schema ppo. What a configuration comes to: rlhf-ray config show ppo --config FILE.
    """
    if tiny:
        overrides = (*tiny_overrides(files, overrides, config_class("ppo")), *overrides)
    config, run = _load("ppo", files, overrides, resume)
    from rlhf_ray.trainers.ppo import PPOTrainer

    PPOTrainer(config, resume=run).train()


def _load(
    stage: str, files: tuple[Path, ...], overrides: tuple[str, ...], resume: str | None
) -> tuple[Any, Path | None]:
    """The stage's configuration and the run to resume.

    The configuration is that of the files, or of the run that is resumed; overrides apply to both. Ends the command
    where `--resume auto` finds nothing left to do.
    """
    from rlhf_ray.config.load import load_config

    if resume is not None and resume != AUTO and not files:
        from rlhf_ray.trainers.run_folder import RunFolder

        files = (RunFolder.open(resume, stage).config_file,)
    if not files and (resume == AUTO or not overrides):
        raise ConfigError(f"nothing to run: give --config FILE, or --resume RUN (see rlhf-ray {stage} --help)")
    config: Any = load_config(config_class(stage), files, overrides)
    if resume == AUTO:
        return config, _unfinished(config, stage)
    return config, Path(resume) if resume else None


def _unfinished(config: Any, stage: str) -> Path | None:
    """The run that `--resume auto` goes on with."""
    from rlhf_ray.trainers.resume import run_to_resume
    from rlhf_ray.trainers.run_record import status_of

    folder = run_to_resume(config, config.run, stage)
    if folder is not None and status_of(folder) == "finished":
        click.echo(f"{folder} has finished: nothing to resume")
        raise click.exceptions.Exit(0)
    click.echo(f"resuming {folder}" if folder else "no unfinished run of this configuration: starting one")
    return folder
