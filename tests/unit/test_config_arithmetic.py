"""The batch arithmetic: hand-computed numbers, and refusal of what does not divide."""

import json
from typing import Any

import pytest

from rlhf_ray.config import PPOConfig, SFTConfig
from rlhf_ray.config.arithmetic import ppo_arithmetic
from rlhf_ray.config.export import json_schema
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit


def config(ranks: int = 1, warmup: int = 0, generation: dict[str, Any] | None = None, **ppo: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "m"},
            "data": {"path": "d"},
            "rewards": {},
            "ppo": ppo,
            "learner": {"ranks": ranks},
            "critic": {"warmup_iterations": warmup},
            "generation": generation or {},
        }
    )


def test_numbers_and_sentences() -> None:
    numbers = ppo_arithmetic(
        config(iterations=10, prompts_per_iteration=32, samples_per_prompt=4, samples_per_minibatch=32, ppo_epochs=2),
        160,
    )
    assert numbers.samples_per_iteration == 128
    assert numbers.minibatches_per_epoch == 4
    assert numbers.optimiser_steps_per_iteration == 8
    assert (numbers.total_samples, numbers.total_optimiser_steps, numbers.passes_over_prompts) == (1280, 80, 2.0)
    assert numbers.lines() == [
        "32 prompts x 4 samples = 128 samples per iteration",
        "4 minibatches of 32 samples x 2 PPO epochs = 8 optimiser steps per iteration",
        "10 iterations: 1,280 samples, 80 optimiser steps, 2 passes over 160 prompts",
    ]


def test_minibatch_defaults_to_the_iteration() -> None:
    numbers = ppo_arithmetic(config(iterations=1, prompts_per_iteration=8))
    assert numbers.lines() == [
        "8 prompts x 1 sample = 8 samples per iteration",
        "1 minibatch of 8 samples x 1 PPO epoch = 1 optimiser step per iteration",
        "1 iteration: 8 samples, 1 optimiser step",
    ]


@pytest.mark.parametrize(("epochs", "prompts", "expected"), [(1, 100, 10), (1, 101, 11), (0.5, 100, 5), (2.5, 40, 10)])
def test_epochs_become_iterations(epochs: float, prompts: int, expected: int) -> None:
    assert ppo_arithmetic(config(epochs=epochs, prompts_per_iteration=10), prompts).iterations == expected


def test_epochs_without_known_prompts_leave_the_length_open() -> None:
    numbers = ppo_arithmetic(config(epochs=1.0))
    assert numbers.iterations is None
    assert numbers.total_samples is None
    assert len(numbers.lines()) == 2


@pytest.mark.parametrize(
    ("broken", "prompts", "message"),
    [
        ({}, None, "give one of them as the length of the run, found neither"),
        ({"iterations": 1, "epochs": 1.0}, None, "found both"),
        (
            {"iterations": 1, "prompts_per_iteration": 8, "samples_per_prompt": 3, "samples_per_minibatch": 7},
            None,
            "ppo.samples_per_minibatch: 7 does not divide "
            "prompts_per_iteration x samples_per_prompt = 24; nearest: 6 or 8",
        ),
        ({"iterations": 1, "prompts_per_iteration": 8, "samples_per_minibatch": 16}, None, "16 does not divide"),
        ({"iterations": 1, "samples_per_minibatch": 2, "ranks": 4}, None, "2 is less than learner.ranks"),
        ({"iterations": 1, "prompts_per_iteration": 8}, 7, "data.path has only 7 prompts"),
        ({"iterations": 3, "warmup": 3}, None, "critic.warmup_iterations: 3 leaves none of the run's 3 iterations"),
        (
            {"iterations": 1, "generation": {"min_new_tokens": 999}},
            None,
            "min_new_tokens: 999 is more",
        ),
    ],
)
def test_what_cannot_be_is_refused(broken: dict[str, Any], prompts: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ppo_arithmetic(config(**broken), prompts)
    assert message in str(caught.value)


@pytest.mark.parametrize("cls", [PPOConfig, SFTConfig])
def test_schema_for_editors(cls: type[PPOConfig] | type[SFTConfig]) -> None:
    schema = json.loads(json.dumps(json_schema(cls)))
    assert "required" not in schema
    assert set(cls.model_fields) | {"include"} == set(schema["properties"])
    assert schema["additionalProperties"] is False
    for name, section in schema["$defs"].items():
        for key, field in section["properties"].items():
            assert field.get("description") or "const" in field, f"{name}.{key} has no meaning"
