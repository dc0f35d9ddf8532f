"""What the algorithm's keys mean together, and which of them contradict each other."""

from typing import Any, get_args

import pytest

from rlhf_ray.algorithms.estimators import GROUP_ESTIMATORS
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.algorithm import (
    ESTIMATORS,
    critic_kind,
    generator_logprobs_serve,
    loss_average,
    whitens,
)
from rlhf_ray.config.arithmetic import ppo_arithmetic
from rlhf_ray.config.ppo import Advantage
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit


def config(ppo: dict[str, Any], **sections: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {"model": {"name": "m"}, "data": {"path": "d"}, "rewards": {}, "ppo": {"iterations": 9} | ppo, **sections}
    )


def test_every_estimator_has_traits_and_every_grouped_one_a_formula() -> None:
    assert set(ESTIMATORS) == set(get_args(Advantage))
    assert {name for name, traits in ESTIMATORS.items() if traits.grouped} == set(GROUP_ESTIMATORS)


@pytest.mark.parametrize(
    ("name", "critic", "whiten", "average"),
    [
        ("gae", "separate", True, "token"),
        ("grpo", "none", False, "sequence"),
        ("grpo_no_std", "none", False, "sequence"),
        ("dr_grpo", "none", False, "constant"),
        ("rloo", "none", False, "token"),
        ("reinforce_pp", "none", True, "token"),
        ("reinforce_pp_baseline", "none", True, "token"),
    ],
)
def test_each_goes_on_as_published_unless_told_otherwise(name: str, critic: str, whiten: bool, average: str) -> None:
    plain = config({"advantage": name})
    assert (critic_kind(plain), whitens(plain), loss_average(plain)) == (critic, whiten, average)
    told = config({"advantage": name, "whiten_advantages": not whiten, "loss_average": "token"})
    assert (whitens(told), loss_average(told)) == (not whiten, "token")
    assert loss_average(config({"advantage": name, "ratio": "sequence"})) == "sequence"


def test_a_critic_follows_the_adapter() -> None:
    adapter = {"name": "m", "lora": {}}
    assert critic_kind(config({}, model=adapter)) == "value_head"
    assert critic_kind(config({}, model=adapter, critic={"kind": "separate"})) == "separate"
    assert critic_kind(config({"advantage": "grpo"}, model=adapter)) == "none"


@pytest.mark.parametrize(
    ("ppo", "sections", "message"),
    [
        ({"advantage": "grpo"}, {}, r"ppo\.samples_per_prompt: 1, but ppo\.advantage=grpo compares"),
        ({"dynamic_sampling": {"enabled": True}}, {}, r"ppo\.dynamic_sampling drops .* ppo\.samples_per_prompt=1"),
        (
            {"advantage": "rloo", "samples_per_prompt": 4},
            {"critic": {"kind": "separate"}},
            r"critic\.kind: separate, but ppo\.advantage=rloo",
        ),
        ({}, {"critic": {"kind": "none"}}, r"critic\.kind: none, but ppo\.advantage=gae .*: grpo, "),
        (
            {"advantage": "reinforce_pp"},
            {"critic": {"warmup_iterations": 2}},
            r"critic\.warmup_iterations: there is no critic .*reinforce_pp",
        ),
        (
            {"overlong": {"buffer_tokens": 65}},
            {"generation": {"max_new_tokens": 64}},
            r"ppo\.overlong\.buffer_tokens: 65 .*max_new_tokens \(64\)",
        ),
        ({"tis_cap": 2.0, "old_logprobs": "generator"}, {}, r"ppo\.tis_cap .*ppo\.old_logprobs=generator"),
        ({"tis_cap": 2.0}, {"generation": {"top_p": 0.9}}, r"ppo\.tis_cap: .*top_p"),
    ],
)
def test_what_cannot_be_is_refused_by_name(ppo: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ppo_arithmetic(config(ppo, **sections))


def test_everything_of_dapo_together_is_accepted() -> None:
    dapo = {
        "advantage": "grpo",
        "samples_per_prompt": 16,
        "clip_range_high": 0.28,
        "loss_average": "token",
        "overlong": {"buffer_tokens": 16, "penalty": 1.0},
        "dynamic_sampling": {"enabled": True, "max_rounds": 3},
    }
    numbers = ppo_arithmetic(config(dapo, kl={"coef": 0}))
    assert numbers.samples_per_iteration == 32 * 16


def test_importance_weights_take_the_old_log_probs_from_the_learner() -> None:
    assert generator_logprobs_serve(config({}))
    assert not generator_logprobs_serve(config({"tis_cap": 2.0}))
