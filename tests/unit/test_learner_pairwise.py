"""The reward model's options on one rank: margins, centring, smoothing, heads; calibration; saving and loading."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_world import (
    largest_difference,
    preferences,
    record_gradients,
    reward_config,
    save_tiny_model,
    weights,
)
from transformers import AutoModelForSequenceClassification

from rlhf_ray.algorithms.bradley_terry import calibration_error, calibration_histogram, pairwise_loss
from rlhf_ray.config.rewards import NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.models.heads import HiddenHead
from rlhf_ray.models.load import load_scalar_lm
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.rewards.neural import NeuralReward

pytestmark = pytest.mark.unit

PAIRS = 8


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("scorer"), scalar=True)


def learner(group, folder, reward, **sections):
    return LearnerRank(reward_config(folder, reward=reward, **sections), group, total_steps=10)


def with_margins(table):
    margins = [None if i == 2 else 0.25 * i for i in range(table.num_rows)]
    return table.append_column("margin", pa.array(margins, pa.float32()))


def scores(rank, table):
    """(chosen, rejected) scores of every pair, float32 [pairs] each, one sequence at a time."""
    reward = rank.trainables["reward"]
    with reward.evaluating():
        return tuple(
            torch.cat([reward.network(TokenBatch.of_last_tokens([np.array(row)])) for row in table[side].to_pylist()])
            for side in ("chosen_tokens", "rejected_tokens")
        )


OPTIONS = {
    "margin column": ({"margin": "margin"}, {"margin": torch.tensor([0, 0.25, 0, 0.75, 1, 1.25, 1.5, 1.75])}),
    "margin constant": ({"margin": 0.5}, {"margin": torch.full((PAIRS,), 0.5)}),
    "all of them": (
        {"margin": 0.5, "center_coef": 0.1, "label_smoothing": 0.1},
        {"margin": torch.full((PAIRS,), 0.5), "center_coef": 0.1, "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize("budget", [1, 100])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_reaches_the_loss_of_its_pairs(group, scorer, option, budget):
    table, (keys, arguments) = with_margins(preferences(0, PAIRS)), OPTIONS[option]
    rank = learner(group, scorer, keys, learner={"dtype": "float32", "tokens_per_microbatch": budget})
    expected = pairwise_loss(*scores(rank, table), **arguments)
    found = rank.pairwise(table, None).step(np.arange(PAIRS))
    assert found["loss/pairwise"] == pytest.approx(expected.loss_sum.item() / PAIRS, rel=1e-5)
    assert found["reward/margin"] == pytest.approx(expected.margin_sum.item() / PAIRS, rel=1e-4)


def test_evaluation_is_the_plain_likelihood_with_its_calibration(group, scorer):
    table = preferences(0, PAIRS)
    rank = learner(group, scorer, {"margin": 3.0, "center_coef": 1.0, "label_smoothing": 0.3})
    chosen, rejected = scores(rank, table)
    plain, found = pairwise_loss(chosen, rejected), rank.pairwise(table, table).evaluate()
    assert found["eval/loss"] == pytest.approx(plain.loss_sum.item() / PAIRS, rel=1e-5)
    assert found["eval/accuracy"] == plain.correct.item() / PAIRS
    expected = calibration_error(calibration_histogram(chosen - rejected))
    assert found["eval/calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_centring_pulls_the_scores_to_zero(group, scorer):
    table, sizes = preferences(1, PAIRS), []
    for coefficient in (0.0, 1.0):
        rank = learner(group, scorer, {"center_coef": coefficient})
        objective = rank.pairwise(table, None)
        for _ in range(10):
            objective.step(np.arange(PAIRS))
        sizes.append(float(sum(scores(rank, table)).abs().mean()))
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_hidden_layer_learns_and_scores_alike_when_loaded(group, model, tmp_path, lora):
    table = preferences(1, PAIRS)
    rank = learner(group, model, {"head_hidden": 24}, model={"name": model, "lora": lora})
    trained = set(rank.trainables["reward"].parameters)
    assert {"model.score.weight", "model.score.out.weight"} <= trained
    assert all(".lora_" in name or ".score." in name for name in trained) == (lora is not None)
    objective, before = rank.pairwise(table, table), weights(rank)
    first = objective.evaluate()["eval/loss"]
    for _ in range(8):
        objective.step(np.arange(PAIRS))
    assert objective.evaluate()["eval/loss"] < first
    after = weights(rank)
    for name in ("reward/model.score.weight", "reward/model.score.out.weight"):
        assert np.abs(after[name] - before[name]).max() > 0

    rank.export(tmp_path, RewardStats(0.5, 2.0))
    again = load_scalar_lm(str(tmp_path)).eval()
    assert isinstance(again.score, HiddenHead)
    chosen, _ = scores(rank, table)
    rows = table["chosen_tokens"].to_pylist()
    with torch.no_grad():
        loaded = torch.stack([again.score(again.model(torch.tensor([row]))[0][0, -1])[0] for row in rows])
    torch.testing.assert_close(loaded, chosen, rtol=1e-4, atol=1e-5)
    samples = pa.table({"prompt_tokens": [row[:1] for row in rows], "response_tokens": [row[1:] for row in rows]})
    outcomes = NeuralReward(NeuralRewardSection(model=str(tmp_path), dtype="float32")).score(samples)
    assert [outcome.value for outcome in outcomes] == pytest.approx(((chosen - 0.5) / 2).tolist(), abs=1e-4)
    # Others' software cannot take it for a plain head and score with random numbers.
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    with pytest.raises(ConfigError, match=r"reward\.head_hidden: 7, but .* head has 24 hidden neurons"):
        load_scalar_lm(str(tmp_path), head_hidden=7)


def test_a_new_head_starts_small(group, model):
    for reward in ({}, {"head_hidden": 24}):
        rank = learner(group, model, reward)
        assert max(float(side.abs().max()) for side in scores(rank, preferences(0, PAIRS))) < 6


@pytest.mark.parametrize("head", [{}, {"head_hidden": 24}])
def test_head_dropout_is_on_in_training_and_off_in_evaluation(group, model, head):
    table = preferences(2, PAIRS)
    rank = learner(group, model, {"head_dropout": 0.5, **head})
    objective = rank.pairwise(table, table)
    assert objective.evaluate() == objective.evaluate()
    gradients = record_gradients(objective.reward)
    objective.reward.learning_rate = 0.0
    for _ in range(2):
        objective.step(np.arange(PAIRS))
    assert largest_difference(*gradients) > 1e-4
