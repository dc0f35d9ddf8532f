"""Optimisers, decay groups, warm-up and recomputation: what the learner's options do to a step."""

import numpy as np
import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from learner_world import (
    demonstrations,
    largest_difference,
    record_gradients,
    sft_config,
    weights,
)
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from rlhf_ray.config.common import LearnerSection
from rlhf_ray.errors import DataError
from rlhf_ray.learner.optimizers import build_optimizer, decay_groups
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit

TABLE, ROWS = demonstrations(0, 6), np.arange(6)
OPTIMIZERS = ("adamw", "adamw_8bit", "sgd")


def learner(group, model, section=None, **options):
    options = {"dtype": "float32", "learning_rate": 1e-2, **options}
    config = sft_config(model, learner=options, model={"name": model, **(section or {})})
    return LearnerRank(config, group, total_steps=20)


def train(rank, steps):
    objective = rank.sft(TABLE, None)
    return [objective.step(ROWS)["loss/sft"] for _ in range(steps)]


# -- optimisers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_the_loss(group, model, name):
    losses = train(learner(group, model, optimizer=name, learning_rate=0.3 if name == "sgd" else 1e-2), 6)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(("name", "fused"), [("adamw", True), ("adamw", False), ("sgd", True)])
def test_a_step_is_the_one_of_torch(group, model, name, fused):
    """By hand, from the recorded gradients (below the norm at which they are clipped)."""
    rank = learner(group, model, optimizer=name, fused=fused, weight_decay=0.1, max_grad_norm=1e6)
    policy = rank.trainables["policy"]
    plain = {n: torch.nn.Parameter(torch.from_numpy(w)) for n, w in weights(rank).items()}
    decayed = [p for n, p in plain.items() if p.ndim >= 2 and "embed_tokens" not in n]
    rest = [p for p in plain.values() if not any(p is d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    same = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=False),
        "sgd": lambda: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    }[name]()
    gradients = record_gradients(policy)
    for _ in range(3):
        train(rank, 1)
        for key, parameter in plain.items():
            parameter.grad = torch.from_numpy(gradients[-1][key.removeprefix("policy/")])
        same.step()
    found = {n: p.detach().numpy() for n, p in plain.items()}
    assert largest_difference(weights(rank), found) < 1e-6


def test_8bit_moments_take_a_quarter_of_the_memory_and_nearly_the_same_steps(group, model):
    start = weights(learner(group, model))
    exact, rank = learner(group, model), learner(group, model, optimizer="adamw_8bit")
    train(exact, 3)
    train(rank, 3)
    optimizer = rank.trainables["policy"].optimizer
    assert isinstance(optimizer, AdamW8bit)
    kinds = {rows.numel() >= 4096: optimizer.state[rows]["state1"].dtype for rows in optimizer.rows.values()}
    assert kinds == {True: torch.uint8, False: torch.float32}
    moved = np.concatenate([(w - start[n]).ravel() for n, w in weights(exact).items()])
    found = np.concatenate([(w - start[n]).ravel() for n, w in weights(rank).items()])
    assert np.corrcoef(moved, found)[0, 1] > 0.98
    assert np.linalg.norm(found - moved) < 0.2 * np.linalg.norm(moved)


def test_8bit_steps_reach_the_forward_pass(group, model):
    """The optimiser writes through views of the shards; a pass afterwards must see it."""
    rank = learner(group, model, optimizer="adamw_8bit")
    objective = rank.sft(TABLE, TABLE)
    start = objective.evaluate()["eval/loss"]
    objective.step(ROWS)
    published = dict(rank.published_tensors())
    assert objective.evaluate()["eval/loss"] < start - 0.01
    shards = {n.removeprefix("policy/lm."): w for n, w in weights(rank).items()}
    assert largest_difference(shards, {n: t.numpy() for n, t in published.items()}) == 0


@pytest.mark.parametrize("lora", [None, {"r": 64}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_takes_the_same_steps(group, model, tmp_path, name, lora):
    whole, first, second = (learner(group, model, {"lora": lora}, optimizer=name) for _ in range(3))
    train(whole, 4)
    train(first, 2)
    first.save(tmp_path)
    second.load(tmp_path)
    train(second, 2)
    assert largest_difference(weights(first), weights(whole)) > 0
    assert largest_difference(weights(second), weights(whole)) == 0


def test_a_checkpoint_of_another_optimiser_is_refused(group, model, tmp_path):
    rank = learner(group, model, optimizer="sgd")
    train(rank, 1)
    rank.save(tmp_path)
    with pytest.raises(DataError, match=r"written by learner\.optimizer=sgd, not adamw: resume with sgd"):
        learner(group, model).load(tmp_path)


# -- weight decay ------------------------------------------------------------------------------------------------------


def test_decay_leaves_biases_norms_and_embeddings_alone(model):
    lm = AutoModelForCausalLM.from_pretrained(model)
    lm.register_module("extra", torch.nn.Linear(4, 2))
    decayed, rest = (
        {n for n, p in lm.named_parameters() if any(p is q for q in part["params"])}
        for part in decay_groups(lm, dict(lm.named_parameters()), 0.1)
    )
    norms = {n for n in rest if "norm" in n}
    assert len(norms) == 5
    assert rest - norms == {"model.embed_tokens.weight", "extra.bias"}
    assert {"lm_head.weight", "extra.weight", "model.layers.0.mlp.down_proj.weight"} <= decayed
    assert decayed | rest == {n for n, _ in lm.named_parameters()}


def test_a_tied_head_is_an_embedding(model):
    lm = AutoModelForCausalLM.from_pretrained(model, tie_word_embeddings=True)
    lm.tie_weights()
    decayed, rest = decay_groups(lm, dict(lm.named_parameters()), 0.1)
    assert any(p is lm.lm_head.weight for p in rest["params"])
    assert not any(p is lm.lm_head.weight for p in decayed["params"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_alone_shrinks_what_decays(name):
    network = torch.nn.ModuleDict({"embed": torch.nn.Embedding(80, 80), "linear": torch.nn.Linear(80, 80)})
    parameters = dict(network.named_parameters())
    section = LearnerSection(optimizer=name, weight_decay=0.5)
    optimizer = build_optimizer(network, parameters, section, learning_rate=0.1)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameters["linear.weight"].detach(), before["linear.weight"] * 0.95)
    assert torch.equal(parameters["linear.bias"], before["linear.bias"])
    assert torch.equal(parameters["embed.weight"], before["embed.weight"])


# -- schedule and accumulation -----------------------------------------------------------------------------------------


def test_warm_up_as_a_share_of_the_run(group, model):
    rank = learner(group, model, warmup_ratio=0.18, schedule="linear", min_learning_rate_ratio=0.5)
    objective = rank.sft(TABLE, None)
    rates = [objective.step(ROWS)["policy/learning_rate"] for _ in range(21)]
    assert rates[:5] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])  # 18 % of 20 steps, rounded up
    assert rates[12] == pytest.approx(0.0075)
    assert rates[20] == pytest.approx(0.005)


def test_two_warm_ups_are_refused():
    with pytest.raises(ValidationError, match="warmup_steps and warmup_ratio"):
        LearnerSection(warmup_steps=3, warmup_ratio=0.1)


# -- recomputed activations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_recomputing_runs_each_layer_again_and_changes_nothing(group, model, lora):
    gradients, passes = [], []
    for recompute in (False, True):
        rank = learner(group, model, {"lora": lora, "gradient_checkpointing": recompute}, tokens_per_microbatch=10_000)
        recorded, count = record_gradients(rank.trainables["policy"]), [0]
        layer = rank.model.model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        train(rank, 2)
        gradients.append(recorded[1])
        passes.append(count[0])
    assert passes == [2, 4]
    assert gradients[0]
    assert largest_difference(*gradients) < 1e-6
