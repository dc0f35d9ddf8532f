"""The callbacks that a configuration asks for."""

from rlhf_ray.config import PPOConfig
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.callbacks_builtin.best_model import BestModel
from rlhf_ray.trainers.callbacks_builtin.console_report import ConsoleReport
from rlhf_ray.trainers.callbacks_builtin.kl_stop import KLEarlyStop, check_kl_is_measured
from rlhf_ray.trainers.callbacks_builtin.plateau import RewardPlateauStop
from rlhf_ray.trainers.callbacks_builtin.sample_table import SampleTable


def configured_callbacks(config: PPOConfig) -> list[Callback]:
    """The console's report, and what `early_stop`, `checkpoint.best` and `tracking.samples_every` switch on.

    Raises:
        ConfigError: an early stop on a KL that the run does not measure.
    """
    callbacks: list[Callback] = [ConsoleReport()]
    stop, evaluation = config.early_stop, config.evaluation
    if config.tracking.samples_every:
        callbacks.append(SampleTable(config.tracking.samples_every))
    if config.checkpoint.best:
        evaluated = (config.data.eval_path or config.data.eval_fraction) and evaluation.prompts and evaluation.every
        callbacks.append(BestModel("held-out prompts" if evaluated else "training samples"))
    if stop.kl is not None:
        check_kl_is_measured(config)
        callbacks.append(KLEarlyStop(stop.kl, stop.kl_patience, stop.kl_per))
    if stop.plateau is not None:
        callbacks.append(RewardPlateauStop(stop.plateau, stop.plateau_min_gain))
    return callbacks
