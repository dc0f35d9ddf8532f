"""The Python form of the supervised stages: arguments to the same validated configuration that YAML gives.

SFTTrainer("gpt2", data=rows, training={"epochs": 2, "learning_rate": 1e-5}, lora=LoraConfig(r=8))
"""

from os import PathLike
from typing import Any, TypeVar

from rlhf_ray.config.base import Section
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.arguments import Arguments, config_of_run

Config = TypeVar("Config", bound=Section)


def build_supervised(
    trainer: str,
    cls: type[Config],
    stage: str,
    model: Any,
    *,
    data: Any = None,
    lora: Any = None,
    training: Any = None,
    run: Any = None,
    resume: str | PathLike[str] | None = None,
) -> Config:
    """The configuration of one run, of type `cls`, whose own section is called `stage`.

    `trainer` is the name of the class that is called, for errors. Without a model it is the resumed run's own one.

    Raises:
        ConfigError: as for a YAML file; the problem's place is the argument that it came in.
    """
    if model is None:
        if resume is None:
            raise ConfigError(f"{trainer}: give a model, a {cls.__name__}, or the folder of a run to resume")
        model = config_of_run(cls, resume)
    arguments = Arguments(trainer, cls, model)
    arguments.add_run(run)
    arguments.add_lora(lora)
    arguments.add_training(training, stage)
    arguments.add_data(data)
    return arguments.build()
