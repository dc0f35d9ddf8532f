"""A rank over its life: steps, evaluations, checkpoints, exports; float16 and bfloat16; where a critic starts."""

import json

import numpy as np
import pytest
import torch
from learner_world import (
    demonstrations,
    largest_difference,
    ppo_config,
    preferences,
    reward_config,
    rollouts,
    save_tiny_model,
    sft_config,
    weights,
)
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.data.templates import NAMED
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.learner.rank import LearnerRank, critic_kind, critic_source
from rlhf_ray.models.reward_stats import RewardStats

pytestmark = pytest.mark.unit

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("scorer"), scalar=True)


def learner(group, config):
    return LearnerRank(config, group, total_steps=20)


def logprobs(folder):
    with torch.no_grad():
        return torch.log_softmax(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, -1)


# -- stale copies ------------------------------------------------------------------------------------------------------


def test_evaluations_always_see_the_weights_of_the_moment(group, model, tmp_path):
    """On one rank FSDP keeps gathered copies after a pass without gradients; none may outlive a change."""
    table = demonstrations(0, 6)
    rank = learner(group, sft_config(model, learner={"dtype": "float32", "learning_rate": 0.01}))
    objective = rank.sft(table, table)
    start = objective.evaluate()["eval/loss"]
    rank.save(tmp_path / "start")
    objective.step(np.arange(6))
    stepped = objective.evaluate()["eval/loss"]
    assert stepped < start - 0.05
    rank.load(tmp_path / "start")
    assert objective.evaluate()["eval/loss"] == start
    objective.step(np.arange(6))
    assert objective.evaluate()["eval/loss"] == stepped


def test_published_and_exported_tensors_are_the_weights_after_the_step(group, model, tmp_path):
    table = demonstrations(0, 6)
    rank = learner(group, sft_config(model, learner={"dtype": "float32", "learning_rate": 0.01}))
    objective = rank.sft(table, table)
    objective.evaluate()
    objective.step(np.arange(6))
    objective.evaluate()
    shards = {n.removeprefix("policy/lm."): value for n, value in weights(rank).items()}
    published = {n: t.numpy() for n, t in rank.published_tensors()}
    assert largest_difference(shards, published) == 0
    rank.export(tmp_path)
    exported = {n: p.detach().numpy() for n, p in AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters()}
    assert largest_difference(shards, exported) == 0
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "w1"


# -- dtypes ------------------------------------------------------------------------------------------------------------


def test_bfloat16_computes_roughly_and_keeps_float32_weights(group, model, tmp_path):
    table = demonstrations(0, 6)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        rank = learner(group, sft_config(model, learner={"dtype": dtype, "learning_rate": 1e-4}))
        objective = rank.sft(table, table)
        start = weights(rank)
        losses[dtype] = [objective.step(np.arange(6))["loss/sft"] for _ in range(3)]
        objective.evaluate()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]
    published = {n: t.clone() for n, t in rank.published_tensors()}
    assert all(t.dtype == torch.float32 for t in published.values())
    # A change of 1e-4 is lost in most bfloat16 numbers, so the float32 ones must be what is published.
    rounded = [torch.equal(t, t.bfloat16().float()) for t in published.values()]
    assert not any(rounded)
    assert largest_difference(start, weights(rank)) > 0
    rank.export(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_float16_skips_steps_that_overflow_and_finds_a_scale(group, model):
    table = demonstrations(0, 6)
    rank = learner(group, sft_config(model, learner={"dtype": "float16", "learning_rate": 1e-3}))
    policy, objective = rank.trainables["policy"], rank.sft(table, table)
    policy.loss_scale = 2.0**40
    start, before = objective.evaluate()["eval/loss"], weights(rank)
    objective.step(np.arange(6))
    assert policy.loss_scale == 2.0**39
    assert largest_difference(before, weights(rank)) == 0
    policy.loss_scale = 2.0**12
    for _ in range(5):
        metrics = objective.step(np.arange(6))
    assert np.isfinite(metrics["policy/grad_norm"])
    assert objective.evaluate()["eval/loss"] < start - 0.02

    full = learner(group, sft_config(model, learner={"dtype": "float32"})).sft(table, None).step(np.arange(6))
    half = learner(group, sft_config(model, learner={"dtype": "float16"})).sft(table, None).step(np.arange(6))
    assert half["policy/grad_norm"] == pytest.approx(full["policy/grad_norm"], rel=0.02)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["separate", "value_head"])
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_resumed_run_ends_with_the_same_bits(group, model, tmp_path, critic, lora):
    config = ppo_config(
        model,
        model={"name": model, "lora": lora},
        critic={"kind": critic},
        learner={"dtype": "float32", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
    )

    def train(rank, iterations):
        objective = rank.ppo("float32")
        for number in iterations:
            objective.train(*rollouts(number), PPOIteration(number, 0.1, policy_frozen=number == 0))

    whole = learner(group, config)
    train(whole, range(4))
    first = learner(group, config)
    train(first, range(1))  # a frozen policy: parameters that have taken no step
    first.save(tmp_path / "one")
    second = learner(group, config)
    second.load(tmp_path / "one")
    train(second, range(1, 2))
    second.save(tmp_path / "two")
    third = learner(group, config)
    third.load(tmp_path / "two")
    train(third, range(2, 4))
    assert largest_difference(weights(first), weights(whole)) > 0
    assert largest_difference(weights(third), weights(whole)) == 0


def test_checkpoints_of_something_else_are_refused(group, model, tmp_path):
    learner(group, ppo_config(model, critic={"kind": "value_head"})).save(tmp_path)
    with pytest.raises(DataError, match=r"learner of \['policy'\], this one has \['critic', 'policy'\]"):
        learner(group, ppo_config(model, critic={"kind": "separate"})).load(tmp_path)
    with pytest.raises(DataError, match=r"rank-\*\.json"):
        learner(group, ppo_config(model)).load(tmp_path / "nothing")
    sft = learner(group, sft_config(model))
    sft.save(tmp_path / "sft")
    with pytest.raises(DataError, match=r"value_head\.weight has 0 of the 1 rows"):
        learner(group, ppo_config(model, critic={"kind": "value_head"})).load(tmp_path / "sft")


# -- exports -----------------------------------------------------------------------------------------------------------


def test_adapter_files_load_in_plain_peft(group, model, tmp_path):
    rank = learner(group, sft_config(model, model={"name": model, "lora": {"r": 4}}))
    objective = rank.sft(demonstrations(0, 6), None)
    for _ in range(3):
        objective.step(np.arange(6))
    rank.export(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        from_adapter = torch.log_softmax(adapted(IDS).logits, -1)
    assert (from_adapter - logprobs(model)).abs().max() > 1e-3
    torch.testing.assert_close(from_adapter, logprobs(tmp_path), rtol=0, atol=1e-5)


def test_a_reward_model_is_saved_with_its_scale(group, model, tmp_path):
    rank = learner(group, reward_config(model))
    rank.pairwise(preferences(0, 4), None).step(np.arange(4))
    rank.export(tmp_path, RewardStats(0.25, 2.0))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(saved.score.weight, rank.model.score.weight.full_tensor())
    assert RewardStats.load(tmp_path) == RewardStats(0.25, 2.0)


@pytest.mark.parametrize("name", ["auto", "chatml"])
def test_a_policy_is_saved_with_the_named_template_it_was_trained_on(group, model, tmp_path, name):
    rank = learner(group, sft_config(model, data={"path": "unused.jsonl", "chat_template": name}))
    rank.sft(demonstrations(0, 6), None)
    rank.export(tmp_path)
    own = AutoTokenizer.from_pretrained(model).chat_template
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == (own if name == "auto" else NAMED[name])


# -- the critic's start ------------------------------------------------------------------------------------------------


def test_where_the_critic_starts(group, model, scorer, tmp_path):
    assert critic_kind(ppo_config(model)) == "separate"
    assert critic_kind(ppo_config(model, model={"name": model, "lora": {}})) == "value_head"
    assert critic_source(ppo_config(model)) == model
    neural = {"quality": {"type": "neural", "model": scorer}}
    assert critic_source(ppo_config(model, rewards=neural)) == model  # a reward model of unknown scale
    folder = save_tiny_model(tmp_path / "ours", scalar=True)
    RewardStats(1.0, 4.0).save(folder)
    ours = ppo_config(model, rewards={"quality": {"type": "neural", "model": folder}})
    assert critic_source(ours) == folder
    network = learner(group, ours).trainables["critic"].network
    saved = AutoModelForSequenceClassification.from_pretrained(folder).score.weight
    torch.testing.assert_close(network.model.score.weight.full_tensor(), saved / 4)
    fresh = learner(group, ppo_config(model)).trainables["critic"].network
    assert not fresh.model.score.weight.full_tensor().any()


def test_a_critic_with_another_vocabulary_is_refused(group, model, scorer, tmp_path):
    other = AutoModelForSequenceClassification.from_pretrained(scorer)
    other.resize_token_embeddings(70)
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"critic\.init_from.*vocabulary of 70, the policy 61"):
        learner(group, ppo_config(model, critic={"init_from": str(tmp_path)}))
