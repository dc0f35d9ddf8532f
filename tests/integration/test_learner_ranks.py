"""One learner rank against two, as processes over gloo: the same gradients, weights and checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_world import (
    Tensors,
    demonstrations,
    grouped,
    largest_difference,
    ppo_config,
    preferences,
    record_gradients,
    reward_config,
    rollouts,
    sft_config,
    weights,
)

from rlhf_ray.errors import AuditError, DataError
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.integration


# -- what the ranks run ------------------------------------------------------------------------------------------------


#: Adam turns a gradient of rounding noise into a step of about the learning rate, so with a
#: large one the weights of two equal runs would differ by more than the tolerance.
LEARNER = {"dtype": "float32", "learning_rate": 1e-4, "tokens_per_microbatch": 64}


def train_ppo(
    group: LearnerGroup,
    sections: dict[str, Any],
    iterations: range,
    samples: int,
    reference: bool = True,
    load: Path | None = None,
    save: Path | None = None,
    model: str | None = None,
) -> tuple[dict[str, list[Tensors]], Tensors, list[dict[str, float]], float]:
    """(gradients of every step, final weights, metrics, audit gap of the last iteration)."""
    learner = LearnerRank(ppo_config(**sections, learner=LEARNER), group, total_steps=20)
    if load:
        learner.load(load)
    objective = learner.ppo("float32")
    gradients = {name: record_gradients(trainable) for name, trainable in learner.trainables.items()}
    metrics = []
    for number in iterations:
        data = rollouts(number, samples, reference=reference, model=model)
        data = grouped(data, learner.config.ppo.samples_per_prompt)
        result, gap = objective.train(*data, PPOIteration(number, 0.1))
        metrics.append(result)
    if save:
        learner.save(save)
    return gradients, weights(learner), metrics, gap.max


def train_supervised(group: LearnerGroup, stage: str, folder: str, rows: int) -> tuple[list[Tensors], Tensors, Any]:
    packing = {"packing": stage.startswith("packed")}
    if "pairwise" in stage:
        head = {"head_hidden": 8, "center_coef": 0.1} | packing
        learner = LearnerRank(reward_config(folder, learner=LEARNER, reward=head), group, total_steps=20)
        objective: Any = learner.pairwise(preferences(0, rows), preferences(1, 3))
    else:
        learner = LearnerRank(sft_config(folder, learner=LEARNER, sft=packing), group, total_steps=20)
        objective = learner.sft(demonstrations(0, rows), demonstrations(1, 3))
    gradients = record_gradients(next(iter(learner.trainables.values())))
    metrics = [objective.step(np.arange(rows)) for _ in range(3)] + [objective.evaluate()]
    if "pairwise" in stage:
        metrics.append(objective.score_moments())
    return gradients, weights(learner), metrics


def export(group: LearnerGroup, sections: dict[str, Any], folder: Path) -> Tensors:
    learner = LearnerRank(ppo_config(**sections, learner=LEARNER), group, total_steps=20)
    learner.ppo("float32").train(*rollouts(0), PPOIteration(0, 0.1))
    learner.export(folder)
    return {name: tensor.numpy().copy() for name, tensor in learner.published_tensors()}


def train_options(
    group: LearnerGroup, sections: dict[str, Any], steps: int, load: Path | None = None, save: Path | None = None
) -> tuple[list[Tensors], Tensors, Tensors]:
    """SFT: (gradients of every step, final weights, what is published)."""
    learner = LearnerRank(sft_config(**sections), group, total_steps=20)
    if load:
        learner.load(load)
    objective, gradients = learner.sft(demonstrations(0, 7), None), record_gradients(learner.trainables["policy"])
    for _ in range(steps):
        objective.step(np.arange(7))
    if save:
        learner.save(save)
    return gradients, weights(learner), {name: tensor.numpy().copy() for name, tensor in learner.published_tensors()}


# -- tests -------------------------------------------------------------------------------------------------------------


def assert_close(one: Any, two: Any) -> None:
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert right[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("critic", ["separate", "value_head"])
@pytest.mark.parametrize(
    ("samples", "ppo", "reference"),
    [
        (7, {"samples_per_minibatch": 4, "ppo_epochs": 2}, True),
        (7, {"old_logprobs": "generator"}, True),
        (1, {"ppo_epochs": 2}, True),  # the second rank has nothing but empty passes
        (3, {"target_kl": 1e-6, "ppo_epochs": 3}, False),
    ],
    ids=["minibatches", "one-minibatch", "one-sample", "no-reference"],
)
def test_ppo_does_not_depend_on_the_number_of_ranks(one, two, model, critic, samples, ppo, reference):
    sections = {"folder": model, "critic": {"kind": critic}, "ppo": {"iterations": 1, "old_logprobs": "learner"} | ppo}
    alone = one.run(train_ppo, sections, range(3), samples, reference)[0]
    both = two.run(train_ppo, sections, range(3), samples, reference)
    for gradients, after, metrics, _ in both:
        for name, steps in alone[0].items():
            assert len(steps) == len(gradients[name])
            assert largest_difference(steps[0], gradients[name][0]) < 1e-6
        assert largest_difference(alone[1], after) < 1e-5
        assert_close(alone[2], metrics)
    assert both[0][2] == both[1][2]


@pytest.mark.parametrize(
    ("ppo", "kl"),
    [
        ({"advantage": "grpo", "samples_per_minibatch": 4, "ppo_epochs": 2}, {}),
        ({"advantage": "rloo", "ratio": "sequence", "tis_cap": 1.5}, {"placement": "loss", "estimator": "k3"}),
        ({"advantage": "reinforce_pp_baseline", "old_logprobs": "generator"}, {}),
    ],
    ids=["grpo", "rloo-gspo-tis", "reinforce_pp_baseline"],
)
def test_groups_may_lie_on_several_ranks(one, two, model, ppo, kl):
    ppo = {"iterations": 1, "old_logprobs": "learner", "samples_per_prompt": 3} | ppo
    sections = {"folder": model, "ppo": ppo, "kl": kl}
    alone = one.run(train_ppo, sections, range(2), 7)[0]
    for gradients, after, metrics, _ in two.run(train_ppo, sections, range(2), 7):
        assert largest_difference(alone[0]["policy"][0], gradients["policy"][0]) < 5e-6
        assert largest_difference(alone[1], after) < 1e-5
        assert_close(alone[2], metrics)


@pytest.mark.parametrize("stage", ["sft", "packed sft", "pairwise", "packed pairwise"])
@pytest.mark.parametrize("rows", [1, 7])
def test_supervised_stages_do_not_depend_on_the_number_of_ranks(one, two, model, stage, rows):
    alone = one.run(train_supervised, stage, model, rows)[0]
    for gradients, after, metrics in two.run(train_supervised, stage, model, rows):
        assert largest_difference(alone[0][0], gradients[0]) < 1e-6
        assert largest_difference(alone[1], after) < 1e-5
        assert_close(alone[2], metrics)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_checkpoints_pass_between_numbers_of_ranks(one, two, model, tmp_path, lora):
    sections = {"folder": model, "critic": {"kind": "value_head"}, "model": {"name": model, "lora": lora}}
    whole = two.run(train_ppo, sections, range(3), 5)[0][1]
    two.run(train_ppo, sections, range(1), 5, True, None, tmp_path / "a")
    one.run(train_ppo, sections, range(1, 2), 5, True, tmp_path / "a", tmp_path / "b")
    mixed = two.run(train_ppo, sections, range(2, 3), 5, True, tmp_path / "b")[0][1]
    assert largest_difference(whole, mixed) < 1e-5

    two.run(train_ppo, sections, range(2), 5, True, None, tmp_path / "c")
    same = two.run(train_ppo, sections, range(2, 3), 5, True, tmp_path / "c")[0][1]
    assert largest_difference(whole, same) == 0

    (tmp_path / "c" / "rank-00001.json").unlink()
    with pytest.raises(DataError, match="holds 1 learner shards"):
        two.run(train_ppo, sections, range(2, 3), 5, True, tmp_path / "c")


def test_every_rank_stops_when_the_audit_fails(two, model):
    strict = {"audit_mean_tolerance": None, "audit_max_tolerance": None}
    sections = {"folder": model, "sync": strict}
    assert two.run(train_ppo, sections, range(1), 3, True, None, None, model)[1][3] < 1e-4
    with pytest.raises(AuditError, match="version 0"):
        two.run(train_ppo, sections, range(1), 3)
    two.run(train_ppo, sections, range(1), 3, True, None, None, model)  # both ranks are still in step


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_two_ranks_export_what_they_publish(two, model, tmp_path, lora):
    from transformers import AutoModelForCausalLM

    sections = {"folder": model, "model": {"name": model, "lora": lora}}
    first, second = two.run(export, sections, tmp_path)
    assert largest_difference(first, second) == 0
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert largest_difference(first, {n: p.detach().numpy() for n, p in saved.named_parameters()}) == 0
    assert type(saved).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_quantised_base_is_the_same_on_every_rank(one, two, model, kind):
    section = {"name": model, "quantization": kind, "lora": {"r": 4}, "gradient_checkpointing": True}
    sections = {"folder": model, "model": section, "learner": LEARNER}
    gradients, after, published = one.run(train_options, sections, 2)[0]
    for found in two.run(train_options, sections, 2):
        assert largest_difference(gradients[0], found[0][0]) < 1e-6
        assert largest_difference(after, found[1]) < 1e-5
        assert largest_difference(published, found[2]) < 1e-5


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "sgd"])
def test_other_optimisers_resume_on_two_ranks(one, two, model, tmp_path, optimizer):
    sections = {"folder": model, "learner": LEARNER | {"optimizer": optimizer, "learning_rate": 1e-3}}
    whole = two.run(train_options, sections, 4)
    two.run(train_options, sections, 2, None, tmp_path)
    resumed = two.run(train_options, sections, 2, tmp_path)
    for rank in (0, 1):
        assert largest_difference(whole[rank][1], resumed[rank][1]) == 0
    if optimizer == "sgd":
        alone = one.run(train_options, sections, 2, tmp_path)[0]
        assert largest_difference(whole[0][1], alone[1]) < 1e-6
    else:  # blocks of 256 moments end with a rank's rows
        with pytest.raises(DataError, match=r"8-bit moments in the blocks of 2 learner ranks, not 1"):
            one.run(train_options, sections, 2, tmp_path)
