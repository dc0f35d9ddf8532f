"""How a pipeline runs each of its stages, reads one back that an earlier call finished, and sees what it gained."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.evaluation.report import REPORT_JSON, Report
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.metrics_file import METRICS_FILE
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.dpo import DPOTrainer
from rlhf_ray.trainers.evaluate import run_evaluation
from rlhf_ray.trainers.evaluation import Evaluation
from rlhf_ray.trainers.gains import Gain, evaluation_gain, ppo_gain, supervised_gain
from rlhf_ray.trainers.policy_use import evaluation_file
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.results import PPOResult, read_history
from rlhf_ray.trainers.reward_model import RewardTrainer
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.sft import SFTTrainer
from rlhf_ray.trainers.stage_result import StageResult

MODEL = ["policy/config.json"]


@dataclass(frozen=True)
class Stage:
    """One kind of stage."""

    run: Callable[[Any, Path | None, Sequence[Callback], Console], Any]  # (configuration, run to resume, ...)
    read: Callable[[Path], Any]  # the result of a finished run, from its folder
    gain: Callable[[Any], Gain | None]
    leaves: list[str]  # without these names in its folder a run is not finished
    resumes: bool = True  # whether an interrupted run goes on; else it begins again


@dataclass(frozen=True)
class StageOutcome:
    """What a stage left, now or in an earlier call."""

    result: Any
    skipped: bool = False

    @property
    def interrupted(self) -> bool:
        return bool(getattr(self.result, "interrupted", False))


def _run_supervised(
    trainer: type[SFTTrainer | RewardTrainer | DPOTrainer],
    config: Any,
    resume: Path | None,
    callbacks: Sequence[Callback],
    console: Console,
) -> StageResult:
    return trainer(config, resume=resume, console=console).train()


def _run_ppo(config: Any, resume: Path | None, callbacks: Sequence[Callback], console: Console) -> PPOResult:
    return PPOTrainer(config, resume=resume, callbacks=callbacks, console=console).train()


def _run_evaluation(config: EvalConfig, resume: Path | None, callbacks: Sequence[Callback], console: Console) -> Report:
    return run_evaluation(config, console)


def read_supervised(path: Path) -> StageResult:
    """The result of a finished SFT, reward-model or DPO run."""
    folder = RunFolder(path.absolute())
    lines = [json.loads(line) for line in (folder.path / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    held_out = [line for line in lines if any(key.startswith("eval/") for key in line)]
    history = [line for line in lines if line not in held_out]
    result = StageResult(folder.policy, folder.path, steps=max((line["step"] for line in history), default=0))
    for line in held_out:
        if line["step"] == 0:
            result.before = _metrics(line)
        else:
            result.after = _metrics(line)
    result.history = [_metrics(line) for line in history]
    return result


def read_ppo(path: Path) -> PPOResult:
    """The result of a finished PPO run."""
    folder = RunFolder(path.absolute())
    history = read_history(folder.metrics_file, iterations=2**63)
    result = PPOResult(folder.policy, folder.path, len(history), history=history)
    before, after = (folder.evaluations / evaluation_file(number) for number in (0, len(history)))
    if before.is_file() and after.is_file():
        result.before, result.after = Evaluation.read(before), Evaluation.read(after)
    return result


def _metrics(line: dict[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as it was logged; what was not finite is NaN."""
    return {key: float("nan") if value is None else value for key, value in line.items() if key != "step"}


def _supervised(name: str, trainer: type[SFTTrainer | RewardTrainer | DPOTrainer]) -> Stage:
    return Stage(partial(_run_supervised, trainer), read_supervised, partial(supervised_gain, name), MODEL)


#: By name in the configuration.
STAGES: dict[str, Stage] = {
    "sft": _supervised("sft", SFTTrainer),
    "reward_model": _supervised("reward_model", RewardTrainer),
    "dpo": _supervised("dpo", DPOTrainer),
    "ppo": Stage(_run_ppo, read_ppo, ppo_gain, MODEL),
    "evaluation": Stage(_run_evaluation, Report.read, evaluation_gain, [REPORT_JSON], resumes=False),
}
