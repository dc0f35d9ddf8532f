"""SFT, reward model and PPO one after the other, each on what the one before it made.

    config = load_config(RLHFConfig, ["rlhf.yaml"])     # ppo: {model: {name: "${sft}"}, ...}
    result = RLHFTrainer(config).train()                # or train_sft(), train_reward_model(), train_ppo()

A stage whose folder holds a run goes on from its last checkpoint: calling `train()` again after a crash, with the same
run.name, does what is left.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf_ray.actors.runtime import connect, disconnect
from rlhf_ray.config.base import Section
from rlhf_ray.config.rlhf import BUILDS_ON, RLHFConfig, fill, placeholders
from rlhf_ray.errors import ConfigError
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.results import PPOResult
from rlhf_ray.trainers.reward_model import RewardTrainer
from rlhf_ray.trainers.run_folder import CONFIG_FILE
from rlhf_ray.trainers.sft import SFTTrainer
from rlhf_ray.trainers.stage_result import StageResult

AnySection = TypeVar("AnySection", bound=Section)
Result = StageResult | PPOResult


@dataclass
class RLHFResult:
    """What each stage left; None for one that is not configured or, after Ctrl-C, was not reached."""

    folder: Path
    sft: StageResult | None = None
    reward_model: StageResult | None = None
    ppo: PPOResult | None = None


class RLHFTrainer:
    """Runs an `RLHFConfig`. `callbacks` are those of the PPO stage."""

    def __init__(
        self, config: RLHFConfig, *, callbacks: Sequence[Callback] = (), console: Console | None = None
    ) -> None:
        self.config, self.callbacks, self.console = config, callbacks, console or Console()
        self.root = Path(config.run.root) / (config.run.name or f"rlhf-{time.strftime('%Y%m%d-%H%M%S')}")

    def train(self) -> RLHFResult:
        """All configured stages in their order; Ctrl-C ends the one in hand and leaves out the rest."""
        result = RLHFResult(self.root)
        run: dict[str, Callable[[], Any]] = {
            "sft": self.train_sft,
            "reward_model": self.train_reward_model,
            "ppo": self.train_ppo,
        }
        stages = {name: section for name in BUILDS_ON if (section := getattr(self.config, name)) is not None}
        first = next(iter(stages.values()))
        cluster = connect(first.resources, first.tracking.verbose)  # one Ray for all of them
        try:
            for name in stages:
                setattr(result, name, done := run[name]())
                if done.interrupted:
                    break
        finally:
            disconnect(cluster)
        return result

    def train_sft(self) -> StageResult:
        """Fine-tune on the demonstrations."""
        config = self._stage("sft", self.config.sft)
        return SFTTrainer(config, resume=self._resume("sft"), console=self.console).train()

    def train_reward_model(self) -> StageResult:
        """Train the reward model on the preferences."""
        config = self._stage("reward_model", self.config.reward_model)
        return RewardTrainer(config, resume=self._resume("reward_model"), console=self.console).train()

    def train_ppo(self) -> PPOResult:
        """Train the policy towards the rewards."""
        config = self._stage("ppo", self.config.ppo)
        resume, callbacks = self._resume("ppo"), self.callbacks
        return PPOTrainer(config, resume=resume, callbacks=callbacks, console=self.console).train()

    def _stage(self, name: str, section: AnySection | None) -> AnySection:
        """The stage's configuration with its own folder and the models of earlier stages.

        Raises:
            ConfigError: the stage is not configured, or a stage that it builds on has not left its model yet.
        """
        if section is None:
            raise ConfigError(f"{name}: is not configured; RLHFConfig({name}=...)")
        for key, stage in placeholders(section, name):
            if not (self._model(stage) / "config.json").is_file():
                raise ConfigError(f"{key}: ${{{stage}}} is not trained yet: there is no model in {self._model(stage)}")
        filled: Any = fill(section, {stage: str(self._model(stage)) for stage in BUILDS_ON[name]})
        filled.run = filled.run.model_copy(update={"root": str(self.root), "name": name})
        return filled

    def _model(self, stage: str) -> Path:
        return (self.root / stage / "policy").absolute()

    def _resume(self, stage: str) -> Path | None:
        folder = self.root / stage
        return folder if (folder / CONFIG_FILE).is_file() else None
