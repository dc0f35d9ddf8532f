"""The DPO objective on one rank, against plain models."""

import numpy as np
import pytest
import torch
from learner_world import (
    dpo_config,
    largest_difference,
    plain_logprobs,
    preferences,
    record_gradients,
    save_tiny_model,
    weights,
)
from pydantic import ValidationError
from torch.nn.functional import logsigmoid, relu
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A reference that is not where the policy starts, but has its tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    save_tiny_model(folder)
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return str(folder)


def objective(group, config, table, eval_table=None, reference=True):
    """The objective of a fresh learner; its reference is precomputed in chunks unless that is left out."""
    dpo = LearnerRank(config, group, total_steps=10).dpo(table, eval_table)
    if reference:
        rows = np.array_split(np.arange(table.num_rows), 2)
        held_out = None if eval_table is None else dpo.reference_logprobs(np.arange(eval_table.num_rows), held_out=True)
        dpo.set_reference(np.concatenate([dpo.reference_logprobs(chunk) for chunk in rows]), held_out)
    return dpo


def responses(table):
    """(prompt, chosen, rejected) of every pair, as arrays."""
    for row in table.to_pylist():
        tokens, prompt = [np.array(row[name]) for name in ("chosen_tokens", "rejected_tokens")], row["prompt_length"]
        # The two prompts of these made-up pairs differ, and nothing here minds.
        yield [(side[:prompt], side[prompt:]) for side in tokens]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_a_step_is_the_mean_loss_of_its_pairs(group, model, other, loss):
    table, rows, beta = preferences(0, 8), np.array([0, 2, 3, 7]), 0.3
    lm, total, margins = AutoModelForCausalLM.from_pretrained(model).eval(), 0, []
    for pair in responses(table.take(rows)):
        ratios, per_token = [], []
        for prompt, response in pair:
            ids = torch.from_numpy(np.concatenate([prompt, response]))
            states = lm(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logprob = states.gather(1, ids[len(prompt) :, None]).sum()
            ratios.append(logprob - float(plain_logprobs(other, prompt, response).sum()))
            per_token.append(ratios[-1] / len(response))
        margins.append(beta * (ratios[0] - ratios[1]))
        losses = {
            "sigmoid": -0.9 * logsigmoid(margins[-1]) - 0.1 * logsigmoid(-margins[-1]),
            "ipo": (per_token[0] - per_token[1] - 0.5 / beta) ** 2,
            "hinge": relu(1 - margins[-1]),
        }
        total = total + losses[loss] / len(rows)
    total.backward()
    smoothing = 0.1 if loss == "sigmoid" else 0.0
    section = {"loss": loss, "beta": beta, "label_smoothing": smoothing, "reference_model": other}
    for budget in (1, 60, 10_000):
        config = dpo_config(model, dpo=section, learner={"dtype": "float32", "tokens_per_microbatch": budget})
        dpo = objective(group, config, table)
        gradients = record_gradients(dpo.policy)
        metrics = dpo.step(rows)
        assert metrics["loss/dpo"] == pytest.approx(total.item(), rel=1e-5)
        assert metrics["rewards/margin"] == pytest.approx(sum(m.item() for m in margins) / len(rows), rel=1e-4)
        assert metrics["rewards/accuracy"] == sum(m.item() > 0 for m in margins) / len(rows)
        for name, parameter in lm.named_parameters():
            np.testing.assert_allclose(gradients[0][f"lm.{name}"], parameter.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_the_reference_is_the_start_or_a_model_of_its_own(group, model, other):
    table = preferences(1, 5)
    for reference, folder in ((None, model), (other, other)):
        dpo = LearnerRank(dpo_config(model, dpo={"reference_model": reference}), group, total_steps=10).dpo(table, None)
        found = dpo.reference_logprobs(np.array([4, 0, 2]))
        expected = [[plain_logprobs(folder, *side).sum() for side in pair] for pair in responses(table.take([4, 0, 2]))]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (dpo.reference is None) == (reference is None)
        dpo.set_reference(np.zeros((5, 2), dtype=np.float32), None)
        assert dpo.reference is None


def test_it_learns_and_its_rewards_are_what_the_model_says(group, model):
    table = preferences(2, 6)
    dpo = objective(group, dpo_config(model), table, table)
    before = dpo.evaluate()
    assert before["eval/loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert before["eval/margin"] == pytest.approx(0, abs=1e-5)
    for _ in range(6):
        metrics = dpo.step(np.arange(6))
    after = dpo.evaluate()
    assert after["eval/accuracy"] == 1
    assert after["eval/margin"] > metrics["rewards/margin"] > 0.1
    assert after["eval/margin"] == pytest.approx(after["eval/chosen"] - after["eval/rejected"], rel=1e-5)
    assert metrics["logps/chosen"] == pytest.approx(
        metrics["rewards/chosen"] / 0.1 + np.mean([plain_logprobs(model, *pair[0]).sum() for pair in responses(table)]),
        rel=1e-4,
    )


def test_without_its_adapters_the_policy_is_the_precomputed_reference(group, model):
    table, found = preferences(3, 6), []
    for reference in ("precomputed", "adapter_off"):
        config = dpo_config(model, model={"name": model, "lora": {"r": 4}}, dpo={"reference": reference})
        assert config.precomputes_reference == (reference == "precomputed")
        dpo = objective(group, config, table, table, reference=config.precomputes_reference)
        metrics = [dpo.step(np.arange(6)) for _ in range(3)]
        assert metrics[-1]["rewards/margin"] > 1e-3  # so the adapters are on where they should be
        found.append((metrics[-1] | dpo.evaluate(), dpo))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-6)


def test_adapter_dropout_does_not_reach_the_reference(group, model):
    table = preferences(4, 4)
    lora = {"name": model, "lora": {"r": 4, "dropout": 0.9}}
    config = dpo_config(model, model=lora, dpo={"reference": "adapter_off"})
    dpo = objective(group, config, table, reference=False)
    for name, parameter in dpo.policy.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.to_local().detach())
    dpo.policy.learning_rate = 0.0
    metrics = [dpo.step(np.arange(4)) for _ in range(2)]
    references = [m["logps/chosen"] - m["rewards/chosen"] / 0.1 for m in metrics]
    assert metrics[0]["logps/chosen"] != metrics[1]["logps/chosen"]
    assert references[0] == pytest.approx(references[1], rel=1e-5)


def test_a_run_can_be_saved_and_resumed_bit_for_bit(group, model, tmp_path):
    table, config = preferences(5, 6), dpo_config(model)

    def learner():
        rank = LearnerRank(config, group, total_steps=4)
        dpo = rank.dpo(table, None)
        dpo.set_reference(dpo.reference_logprobs(np.arange(6)), None)
        return rank, dpo

    rank, dpo = learner()
    for step in range(4):
        if step == 2:
            rank.save(tmp_path)
        dpo.step(np.array([step, step + 1, step + 2]))
    whole = weights(rank)
    rank, dpo = learner()
    rank.load(tmp_path)
    for step in (2, 3):
        dpo.step(np.array([step, step + 1, step + 2]))
    assert largest_difference(whole, weights(rank)) == 0


def test_a_reference_of_another_vocabulary_is_refused(group, model, tmp_path):
    config = AutoConfig.from_pretrained(model)
    config.vocab_size = 70
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    rank = LearnerRank(dpo_config(model, dpo={"reference_model": str(tmp_path)}), group, total_steps=1)
    with pytest.raises(ConfigError, match=r"dpo.reference_model: .* has a vocabulary of 70, the policy 61"):
        rank.dpo(preferences(6, 2), None)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"dpo": {"loss": "ipo", "label_smoothing": 0.1}}, "label_smoothing: is of the sigmoid loss alone"),
        ({"dpo": {"reference": "adapter_off"}}, "dpo.reference: adapter_off needs model.lora"),
        ({"dpo": {"reference": "adapter_off", "reference_model": "m"}}, "leave reference_model out"),
        ({"dpo": {"beta": 0.0}}, "greater than 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(sections, says):
    with pytest.raises(ValidationError, match=says):
        dpo_config("m", **sections)


@pytest.mark.parametrize(
    ("lora", "dpo", "precomputes"),
    [
        (None, {}, True),
        ({}, {}, False),
        ({}, {"epochs": 2}, True),
        ({}, {"reference_model": "m"}, True),
        ({}, {"reference": "precomputed"}, True),
    ],
)
def test_the_reference_comes_from_where_it_costs_least(lora, dpo, precomputes):
    assert dpo_config("m", model={"name": "m", "lora": lora}, dpo=dpo).precomputes_reference == precomputes
