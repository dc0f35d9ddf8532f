"""Ready-made callbacks, one per file."""

from rlhf_ray.trainers.callbacks_builtin.best_model import Best, BestModel
from rlhf_ray.trainers.callbacks_builtin.configured import configured_callbacks
from rlhf_ray.trainers.callbacks_builtin.console_report import ConsoleReport
from rlhf_ray.trainers.callbacks_builtin.kl_stop import KLEarlyStop
from rlhf_ray.trainers.callbacks_builtin.plateau import RewardPlateauStop
from rlhf_ray.trainers.callbacks_builtin.sample_table import SampleTable
from rlhf_ray.trainers.callbacks_builtin.trackers import (
    MLflowCallback,
    TensorBoardCallback,
    TrackerCallback,
    WandbCallback,
)

__all__ = [
    "Best",
    "BestModel",
    "ConsoleReport",
    "KLEarlyStop",
    "MLflowCallback",
    "RewardPlateauStop",
    "SampleTable",
    "TensorBoardCallback",
    "TrackerCallback",
    "WandbCallback",
    "configured_callbacks",
]
