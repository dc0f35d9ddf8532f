"""SFT and pairwise objectives on one rank, against plain models."""

import numpy as np
import pytest
import torch
from learner_world import (
    demonstrations,
    largest_difference,
    preferences,
    record_gradients,
    reward_config,
    save_tiny_model,
    sft_config,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("scorer"), scalar=True)


def learner(group, config):
    return LearnerRank(config, group, total_steps=10)


def test_sft_step_is_the_mean_cross_entropy_of_the_response_tokens(group, model):
    table, rows = demonstrations(0, 9), np.array([1, 2, 3, 5, 8])
    lm, total = AutoModelForCausalLM.from_pretrained(model).eval(), 0
    tokens = sum(len(r["tokens"]) - r["prompt_length"] for r in table.take(rows).to_pylist())
    for row in table.take(rows).to_pylist():
        ids = torch.tensor(row["tokens"])
        loss = torch.nn.functional.cross_entropy(lm(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total = total + loss[row["prompt_length"] - 1 :].sum() / tokens
    total.backward()
    for budget in (1, 50, 10_000):
        rank = learner(group, sft_config(model, learner={"dtype": "float32", "tokens_per_microbatch": budget}))
        gradients = record_gradients(rank.trainables["policy"])
        metrics = rank.sft(table, None).step(rows)
        assert metrics["loss/sft"] == pytest.approx(total.item(), rel=1e-5)
        for name, parameter in lm.named_parameters():
            np.testing.assert_allclose(gradients[0][f"lm.{name}"], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_pairwise_step_is_the_mean_bradley_terry_loss(group, scorer):
    table, rows = preferences(0, 8), np.array([0, 2, 3, 7])
    plain, total = AutoModelForSequenceClassification.from_pretrained(scorer).eval(), 0
    for row in table.take(rows).to_pylist():
        chosen, rejected = (
            (plain.model(torch.tensor([row[name]]))[0][0, -1] @ plain.score.weight[0])
            for name in ("chosen_tokens", "rejected_tokens")
        )
        total = total - torch.nn.functional.logsigmoid(chosen - rejected) / len(rows)
    total.backward()
    for budget in (1, 60, 10_000):
        rank = learner(group, reward_config(scorer, learner={"dtype": "float32", "tokens_per_microbatch": budget}))
        gradients = record_gradients(rank.trainables["reward"])
        metrics = rank.pairwise(table, None).step(rows)
        assert metrics["loss/pairwise"] == pytest.approx(total.item(), rel=1e-5)
        for name, parameter in plain.named_parameters():
            np.testing.assert_allclose(gradients[0][f"model.{name}"], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_reward_model_learns_and_states_the_scale_of_its_scores(group, model):
    table = preferences(1, 6)
    rank = learner(group, reward_config(model))
    objective = rank.pairwise(table, table)
    for _ in range(8):
        objective.step(np.arange(6))
    found = objective.evaluate()
    assert found["eval/accuracy"] == 1
    moments = objective.score_moments()
    scores = []
    with torch.no_grad():
        for name in ("chosen_tokens", "rejected_tokens"):
            for row in table[name].to_pylist():
                states = rank.model.base_model(torch.tensor([row]))[0][0, -1]
                scores.append(rank.model.score(states).item())
    assert moments["mean"] == pytest.approx(np.mean(scores), rel=1e-3, abs=1e-5)
    assert moments["std"] == pytest.approx(np.std(scores), rel=1e-3)
    margin = np.mean(np.subtract(scores[:6], scores[6:]))
    assert found["eval/margin"] == pytest.approx(margin, rel=1e-3)


def test_reward_model_with_adapters_trains_its_head_too(group, model):
    rank = learner(group, reward_config(model, model={"name": model, "lora": {"r": 2}}))
    names = set(rank.trainables["reward"].parameters)
    assert "model.score.weight" in names
    assert all(".lora_" in name or name == "model.score.weight" for name in names)
    head = rank.model.score.weight.full_tensor().clone()
    rank.pairwise(preferences(1, 6), None).step(np.arange(6))
    assert not torch.equal(head, rank.model.score.weight.full_tensor())


def test_adapter_dropout_is_on_in_training_and_off_in_evaluation(group, model):
    table = demonstrations(2, 4)
    config = sft_config(model, model={"name": model, "lora": {"r": 4, "dropout": 0.9}})
    rank = learner(group, config)
    for name, parameter in rank.trainables["policy"].parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.to_local().detach())
    objective = rank.sft(table, table)
    assert objective.evaluate() == objective.evaluate()
    gradients = record_gradients(rank.trainables["policy"])
    objective.policy.learning_rate = 0.0
    for _ in range(2):
        objective.step(np.arange(4))
    assert largest_difference(*gradients) > 1e-4


def test_recomputed_activations_give_the_same_gradients(group, model):
    found = []
    for recompute in (False, True):
        rank = learner(group, sft_config(model, model={"name": model, "gradient_checkpointing": recompute}))
        gradients = record_gradients(rank.trainables["policy"])
        assert rank.model.is_gradient_checkpointing == recompute
        rank.sft(demonstrations(0, 6), None).step(np.arange(6))
        found.append(gradients[0])
    assert largest_difference(*found) < 1e-6
