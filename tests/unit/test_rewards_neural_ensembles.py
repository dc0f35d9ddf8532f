"""Ensembles of reward models: how members combine, what is logged, and what a member's failure means."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reward_models import samples, save_llama, save_tokenizer, section, values

from rlhf_ray.actors.scorer import make_scorer
from rlhf_ray.config.rewards import EnsembleRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.ensemble import EnsembleReward, member_names, neural_reward
from rlhf_ray.rewards.neural import NeuralReward
from rlhf_ray.schema import reward_schema

pytestmark = pytest.mark.unit


@pytest.fixture
def members(tmp_path: Path) -> list[str]:
    for seed, name in enumerate(("quality", "safety", "tone-v2")):
        save_llama(tmp_path / name, seed=seed)
        save_tokenizer(tmp_path / name, "$A", eos_token="</s>", pad_token="<pad>")
    return [str(tmp_path / name) for name in ("quality", "safety", "tone-v2")]


def ensemble(models: list[str], **options: object) -> EnsembleRewardSection:
    return EnsembleRewardSection(models=models, dtype="float32", device="cpu", **options)


@pytest.mark.parametrize("combine", ["mean", "min", "uncertainty"])
def test_members_combine_and_are_kept_as_parts(members: list[str], combine: str) -> None:
    table = samples(7)
    alone = np.array([values(NeuralReward(section(Path(model))), table) for model in members])  # [members, samples]
    expected = {
        "mean": alone.mean(axis=0),
        "min": alone.min(axis=0),
        "uncertainty": alone.mean(axis=0) - 0.5 * alone.std(axis=0),
    }[combine]
    outcomes = neural_reward(ensemble(members, combine=combine, penalty=0.5)).score(table)
    assert [outcome.value for outcome in outcomes] == pytest.approx(expected, abs=1e-5)
    for row, outcome in enumerate(outcomes):
        assert list(outcome.parts) == ["quality", "safety", "tone_v2"]
        assert list(outcome.parts.values()) == pytest.approx(alone[:, row], abs=1e-5)


def test_a_member_that_cannot_score_a_sample_fails_it(members: list[str]) -> None:
    table = samples(7)
    poison = table.to_pylist()[2]["response_tokens"][0]
    model = save_llama(Path(members[1]), seed=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = math.nan
    model.save_pretrained(members[1])
    hit = [poison in row["prompt_tokens"] + row["response_tokens"] for row in table.to_pylist()]
    outcomes = EnsembleReward(ensemble(members)).score(table)
    assert [outcome.value is None for outcome in outcomes] == hit
    assert [outcome.failure is not None for outcome in outcomes] == hit
    assert outcomes[2].failure.kind == "not_finite"
    assert "(member safety)" in outcomes[2].failure.message


def test_a_scorer_answers_with_a_column_per_member(members: list[str]) -> None:
    scorer = make_scorer("quality", ensemble(members[:2]), threads=1)
    assert scorer.ready() == {"component": "quality", "device": "cpu"}
    answer, failures = scorer.score(samples(3))
    assert answer.schema == reward_schema("quality", ["quality", "safety"])
    assert failures == []
    total, first, second = (answer.column(f"reward/quality{part}").to_numpy() for part in ("", "/quality", "/safety"))
    assert total == pytest.approx((first + second) / 2)
    assert not np.allclose(first, second)


def test_names_of_members_are_short_and_distinct() -> None:
    assert member_names(["org/reward-7b", "/models/tone"]) == ["reward_7b", "tone"]
    assert member_names(["a/reward", "b/reward"]) == ["reward_0", "reward_1"]
    with pytest.raises(ConfigError, match="names a model twice"):
        member_names(["a/reward", "a/reward"])
