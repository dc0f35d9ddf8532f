"""Bad updates: found before they are taken, left out or fatal by policy, their batches kept."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from learner_world import (
    demonstrations,
    dpo_config,
    largest_difference,
    ppo_config,
    preferences,
    reward_config,
    rollouts,
    sft_config,
    weights,
)

from rlhf_ray.config.guards import GuardsSection
from rlhf_ray.errors import BadUpdate, DataError
from rlhf_ray.learner.guards import FEWEST, WINDOW, Origin, UpdateGuard
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.learner.quarantine import UPDATES_FILE
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.learner.trainable import BAD_UPDATES

pytestmark = pytest.mark.unit

SAMPLES, POISONED = 7, 2
NOWHERE = Origin(1, 1, lambda: pytest.fail("asked for the batch of a good update"))


@pytest.fixture(scope="module")
def poisoned():
    """Rollouts with one reward that is not a number."""
    index, fetch = rollouts(1, SAMPLES)
    return replace(index, reward=np.where(np.arange(SAMPLES) == POISONED, np.nan, index.reward)), fetch


def ppo(group, model, folder, action, **sections):
    config = ppo_config(model, guards={"on_bad_update": action}, checkpoint={"every": 1}, **sections)
    return LearnerRank(config, group, 100, folder)


def guard(group, measure="loss", **section):
    return UpdateGuard(GuardsSection(**section), "policy", group, measure)


# -- the verdict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "grad_norm"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_what_is_not_finite_is_bad(group, loss, grad_norm):
    skipping = guard(group, on_bad_update="skip")
    assert skipping.admits(1.0, 1.0, NOWHERE)
    assert not skipping.admits(loss, grad_norm, Origin(1, 1, lambda: None))
    assert skipping.admits(1.0, 1.0, NOWHERE)


@pytest.mark.parametrize("measure", ["loss", "grad_norm"])
def test_an_explosion_is_measured_against_the_median_of_the_last_steps(group, measure):
    def numbers(size):
        return (size, 1.0) if measure == "loss" else (1e-9, size)

    exploding = guard(group, measure, on_bad_update="skip", max_loss_factor=3.0)
    origin = Origin(1, 1, lambda: None)
    for size in [100.0] + [1.0] * (FEWEST - 1):  # too few to compare with: the first is no explosion
        assert exploding.admits(*numbers(size), NOWHERE)
    assert not exploding.admits(*numbers(3.1), origin)
    assert not exploding.admits(*numbers(3.1), origin)  # the refused one has not entered the median
    assert exploding.admits(*numbers(2.9), NOWHERE)
    resumed = guard(group, measure, on_bad_update="skip", max_loss_factor=3.0)
    resumed.load_state_dict(json.loads(json.dumps(exploding.state_dict())))
    assert not resumed.admits(*numbers(3.1), origin)


def test_a_level_that_rises_over_many_steps_is_no_explosion(group):
    rising = guard(group, max_loss_factor=3.0)
    assert all(rising.admits(1.02**step, 1.0, NOWHERE) for step in range(4 * WINDOW))


def test_a_step_of_some_parameters_is_compared_with_no_other(group):
    exploding = guard(group, "grad_norm", on_bad_update="skip", max_loss_factor=3.0)
    assert all(exploding.admits(1.0, 1e-3, NOWHERE, whole=False) for _ in range(FEWEST))
    assert all(exploding.admits(1.0, 1.0, NOWHERE) for _ in range(FEWEST))
    assert exploding.admits(1.0, 99.0, NOWHERE, whole=False)
    assert not exploding.admits(1.0, np.nan, Origin(1, 1, lambda: None), whole=False)
    assert not exploding.admits(1.0, 99.0, Origin(1, 1, lambda: None))


def test_without_a_factor_any_finite_size_is_good(group):
    stopping = guard(group)
    assert all(stopping.admits(size, size, NOWHERE) for size in [1.0] * FEWEST + [1e30])


# -- what becomes of it ------------------------------------------------------------------------------------------------


def test_a_skipped_update_changes_nothing_but_the_schedule(group, model, tmp_path, poisoned):
    learner = ppo(group, model, tmp_path, "skip", critic={"kind": "separate"}, learner={"warmup_steps": 10})
    objective, good = learner.ppo("float32"), rollouts(3, SAMPLES)
    objective.train(*good, PPOIteration(0, 0.1))
    before = weights(learner)
    moments = {k: t.clone() for k, t in _moments(learner.trainables["policy"]).items()}
    metrics, _ = objective.train(*poisoned, PPOIteration(1, 0.1))
    assert metrics[BAD_UPDATES] == 2  # the critic's and the policy's
    assert largest_difference(before, weights(learner)) == 0
    assert all(torch.equal(moments[name], t) for name, t in _moments(learner.trainables["policy"]).items())
    metrics, _ = objective.train(*good, PPOIteration(2, 0.1))
    assert BAD_UPDATES not in metrics
    assert metrics["policy/learning_rate"] == pytest.approx(1e-3 * 2 / 10)  # after two steps of ten
    assert largest_difference(before, weights(learner)) > 0


def _moments(trainable):
    states = {name: trainable.optimizer.state[p] for name, p in trainable.parameters.items()}
    return {f"{n}/{k}": s[k].to_local() for n, s in states.items() for k in ("exp_avg", "exp_avg_sq")}


@pytest.mark.parametrize(("action", "error"), [("stop", DataError), ("rollback", BadUpdate)])
def test_stop_and_rollback_raise_with_the_weights_as_they_were(group, model, tmp_path, poisoned, action, error):
    learner = ppo(group, model, tmp_path, action, ppo={"advantage": "reinforce_pp"})
    before = weights(learner)
    with pytest.raises(error, match=r"gradient norm is nan at optimiser step 1 of the policy in iteration 5") as raised:
        learner.ppo("float32").train(*poisoned, PPOIteration(4, 0.1))
    assert type(raised.value) is error
    assert str(tmp_path / "update-000005-1-policy.parquet") in str(raised.value)
    assert largest_difference(before, weights(learner)) == 0


def test_an_accumulated_gradient_is_dropped_with_a_refused_step(group, model, poisoned):
    learner = ppo(group, model, None, "skip", ppo={"advantage": "reinforce_pp"})
    learner.ppo("float32").train(*poisoned, PPOIteration(0, 0.1))
    assert all(parameter.grad is None for parameter in learner.trainables["policy"].parameters.values())


def test_a_learner_that_goes_back_trains_as_if_nothing_had_been(group, model, tmp_path, poisoned):
    learners = [ppo(group, model, tmp_path, "rollback", ppo={"advantage": "reinforce_pp"}) for _ in range(2)]
    good = rollouts(3, SAMPLES)
    for number, learner in enumerate(learners):
        objective = learner.ppo("float32")
        objective.train(*good, PPOIteration(0, 0.1))
        learner.save(tmp_path / str(number))
        if number:
            with pytest.raises(BadUpdate):
                objective.train(*poisoned, PPOIteration(1, 0.1))
            learner.load(tmp_path / str(number))
        objective.train(*good, PPOIteration(2, 0.1))
    assert largest_difference(*map(weights, learners)) == 0


def test_half_precision_without_room_to_scale_down_is_bad_too(group, model):
    learner = LearnerRank(sft_config(model, learner={"dtype": "float16"}), group, 10)
    policy, objective = learner.trainables["policy"], learner.sft(demonstrations(0, 6), None)
    policy.network.register_forward_hook(_nan_gradient)
    scale = policy.loss_scale
    assert BAD_UPDATES not in objective.step(np.arange(6))  # an overflow, as it may come
    assert policy.loss_scale == scale / 2
    policy.loss_scale = 1.0
    with pytest.raises(DataError, match="gradient norm is nan"):
        objective.step(np.arange(6))


def _nan_gradient(network, inputs, output):
    output.logprobs.register_hook(lambda gradient: gradient * torch.nan)


def _nan_output(network, inputs, output):
    """Log-probs, or scores, and what follows from them."""
    if isinstance(output, torch.Tensor):
        return output * torch.nan
    return output._replace(logprobs=output.logprobs * torch.nan)


# -- the batch ---------------------------------------------------------------------------------------------------------


def test_a_kept_ppo_batch_holds_tokens_rewards_and_advantages(group, model, tmp_path, poisoned):
    learner = ppo(group, model, tmp_path, "skip", critic={"kind": "separate"}, ppo={"samples_per_minibatch": SAMPLES})
    learner.ppo("float32").train(*poisoned, PPOIteration(2, 0.1))
    index, fetch = poisoned
    rows = pq.read_table(tmp_path / "update-000003-1-policy.parquet").sort_by("prompt_id").to_pylist()
    assert [row["prompt_id"] for row in rows] == index.prompt_id.tolist()
    for number, row in enumerate(rows):
        sample = {name: fetch(int(index.batch[number]))[0][name][int(index.row[number])].as_py() for name in TOKENS}
        assert {name: row[name] for name in TOKENS} == sample
        assert row["reward"] == pytest.approx(index.reward[number], nan_ok=True)
        assert len(row["advantages"]) == len(row["response_tokens"]) == len(row["old_logprobs"])
        assert np.isnan(row["advantages"]).all()  # whitened together
    critic = pq.read_table(tmp_path / "update-000003-1-critic.parquet").sort_by("prompt_id")["advantages"].to_pylist()
    assert [np.isnan(values).any() for values in critic] == [number == POISONED for number in range(SAMPLES)]
    lines = [json.loads(line) for line in (tmp_path / UPDATES_FILE).read_text().splitlines()]
    assert [(line["network"], line["iteration"], line["action"]) for line in lines] == [
        ("critic", 3, "skip"),
        ("policy", 3, "skip"),
    ]
    assert lines[1]["file"] == "update-000003-1-policy.parquet"
    assert lines[1]["grad_norm"] == "nan"


TOKENS = ("prompt_tokens", "response_tokens")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_supervised_stages_keep_the_rows_of_a_bad_step(group, model, tmp_path, stage):
    guards = {"guards": {"on_bad_update": "skip"}}
    rows = np.array([1, 3, 4])
    if stage == "sft":
        learner = LearnerRank(sft_config(model, **guards), group, 10, tmp_path)
        table, network = demonstrations(0, 6), "policy"
        objective = learner.sft(table, None)
    elif stage == "dpo":
        learner = LearnerRank(dpo_config(model, **guards), group, 10, tmp_path)
        table, network = preferences(0, 6), "policy"
        objective = learner.dpo(table, None)
        objective.set_reference(objective.reference_logprobs(np.arange(6)), None)
    else:
        learner = LearnerRank(reward_config(model, **guards), group, 10, tmp_path)
        table, network = preferences(0, 6), "reward"
        objective = learner.pairwise(table, None)
    objective.step(rows)
    before = weights(learner)
    learner.trainables[network].network.register_forward_hook(_nan_output)
    metrics = objective.step(rows)
    assert metrics[BAD_UPDATES] == 1
    assert largest_difference(before, weights(learner)) == 0
    kept = pq.read_table(tmp_path / f"update-000002-1-{network}.parquet")
    assert kept["row"].to_pylist() == rows.tolist()
    assert kept.drop_columns("row").equals(table.take(rows))


def test_a_folder_that_takes_nothing_does_not_hide_the_bad_update(group, model, tmp_path, poisoned):
    (tmp_path / "file").write_text("")
    learner = ppo(group, model, tmp_path / "file", "stop", ppo={"advantage": "reinforce_pp"})
    with pytest.raises(DataError, match=r"gradient norm is nan.*could not be kept in .*file \((File exists|Not a dir)"):
        learner.ppo("float32").train(*poisoned, PPOIteration(0, 0.1))


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [sft_config, reward_config, dpo_config, ppo_config])
def test_a_rollback_needs_checkpoints(config):
    with pytest.raises(ValueError, match=r"rollback needs checkpoints to go back to; set checkpoint\.every"):
        config("model", guards={"on_bad_update": "rollback"})
    assert config("model", guards={"on_bad_update": "rollback"}, checkpoint={"every": 5}).guards.max_bad_updates == 3
