"""The PPO objective on one rank: what it computes, what it leaves alone, what it refuses."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from learner_world import (
    largest_difference,
    ppo_config,
    record_gradients,
    rollouts,
    save_tiny_model,
    weights,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.errors import AuditError, ConfigError, DataError
from rlhf_ray.learner.ppo import PPOIteration, generator_logprobs_serve
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit

KL_COEF = 0.1
ITERATION = PPOIteration(0, KL_COEF)
STRICT = {"audit_mean_tolerance": None, "audit_max_tolerance": None}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A network whose values are not zero at the start."""
    return save_tiny_model(tmp_path_factory.mktemp("scorer"), scalar=True)


class Run:
    """A learner over one config, its gradients recorded."""

    def __init__(self, group, folder, critic, **sections):
        chosen = {"kind": "value_head"} if critic is None else {"kind": "separate", "init_from": critic}
        self.learner = LearnerRank(ppo_config(folder, critic=chosen, **sections), group, total_steps=100)
        if critic is None:
            head = self.learner.trainables["policy"].parameters["value_head.weight"].to_local()
            torch.nn.init.normal_(head.detach(), std=0.3, generator=torch.Generator().manual_seed(5))
        self.objective = self.learner.ppo("float32")
        self.gradients = {name: record_gradients(t) for name, t in self.learner.trainables.items()}

    def train(self, data, iteration=ITERATION):
        self.metrics, self.gap = self.objective.train(*data, iteration)
        return self


def plain_gradients(model, critic, config, data):
    """Gradients of the first update, written down sample by sample with plain models and no padding."""
    index, fetch = data
    ppo, kl, temperature = config.ppo, config.kl, config.generation.temperature
    lm = AutoModelForCausalLM.from_pretrained(model).eval()
    scalar = None if critic is None else AutoModelForSequenceClassification.from_pretrained(critic).eval()
    head = torch.zeros(1, 64)
    head.normal_(std=0.3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    samples = []
    for i in range(len(index)):
        table, references = fetch(int(index.batch[i]))
        row = table.slice(int(index.row[i]), 1).to_pylist()[0]
        prompt, response = row["prompt_tokens"], row["response_tokens"]
        ids, positions = torch.tensor([prompt + response]), slice(len(prompt) - 1, -1)
        logps = torch.log_softmax(lm(ids).logits[0, positions] / temperature, -1)
        logprobs = logps[torch.arange(len(response)), torch.tensor(response)]
        network = lm.model if scalar is None else scalar.model
        values = (network(ids)[0][0, positions] @ (head if scalar is None else scalar.score.weight).T)[:, 0]
        generated = torch.tensor(row["response_logprobs"])
        old = generated if ppo.old_logprobs == "generator" else logprobs.detach()
        reference = torch.tensor(references["reference_logprobs"][int(index.row[i])].as_py())
        rewards = torch.zeros(len(response))
        if kl.placement == "reward":
            assert kl.estimator == "k1"
            rewards -= KL_COEF * (old - reference)
        rewards[-1] += index.reward[i]
        advantages, following, after = torch.zeros(len(response)), 0.0, 0.0
        for t in reversed(range(len(response))):
            following = rewards[t] + ppo.gamma * after - values[t].item() + ppo.gamma * ppo.gae_lambda * following
            advantages[t], after = following, values[t].item()
        samples.append((logprobs, old, reference, values, advantages, -(logps.exp() * logps).sum(-1)))
    everything = torch.cat([sample[4] for sample in samples])
    mean, std, tokens = everything.mean(), everything.std(unbiased=False), len(everything)
    policy_loss, critic_loss = 0.0, 0.0
    for logprobs, old, reference, values, advantages, entropy in samples:
        ratio, scaled = (logprobs - old).exp(), (advantages - mean) / std
        low, high = 1 - ppo.clip_range, 1 + ppo.clip_range
        policy_loss -= torch.minimum(ratio * scaled, ratio.clamp(low, high) * scaled).sum() / tokens
        policy_loss -= ppo.entropy_coef * entropy.sum() / tokens
        if kl.placement == "loss":
            assert kl.estimator == "k3"
            difference = reference - logprobs
            policy_loss += KL_COEF * (difference.exp() - 1 - difference).sum() / tokens
        critic_loss += 0.5 * (values - (advantages + values.detach())).square().sum() / tokens
    if scalar is None:
        policy_loss = policy_loss + ppo.value_loss_coef * critic_loss
    else:
        critic_loss.backward()
    policy_loss.backward()
    found = {"policy": {f"lm.{n}": p.grad.numpy() for n, p in lm.named_parameters()}}
    if scalar is None:
        found["policy"]["value_head.weight"] = head.grad.numpy()
    else:
        found["critic"] = {f"model.{n}": p.grad.numpy() for n, p in scalar.named_parameters()}
    return found


@pytest.mark.parametrize("budget", [30, 10_000], ids=["micro-batches", "one-pass"])
@pytest.mark.parametrize("shared", [False, True], ids=["separate", "value_head"])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"generation": {"temperature": 0.7}, "ppo": {"entropy_coef": 0.02}},
        {"kl": {"placement": "loss", "estimator": "k3"}, "ppo": {"gamma": 0.9, "gae_lambda": 0.8}},
        {"ppo": {"old_logprobs": "generator"}},
    ],
    ids=["plain", "temperature", "kl-in-loss", "generator"],
)
def test_first_update_is_that_of_plain_models(group, model, scorer, shared, budget, sections):
    critic = None if shared else scorer
    sections = {**sections, "ppo": {"iterations": 1, "old_logprobs": "learner"} | sections.get("ppo", {})}
    data = rollouts(0, model=model)
    run = Run(group, model, critic, learner={"tokens_per_microbatch": budget, "learning_rate": 1e-5}, **sections)
    expected = plain_gradients(model, critic, run.learner.config, data)
    run.train(data)
    for name, gradients in expected.items():
        (ours,) = run.gradients[name]
        for parameter, gradient in gradients.items():
            np.testing.assert_allclose(ours[parameter], gradient, rtol=1e-4, atol=2e-6, err_msg=parameter)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "value_head"])
@pytest.mark.parametrize("minibatch", [None, 4])
def test_micro_batches_do_not_change_the_gradients(group, model, scorer, shared, minibatch):
    runs = [
        Run(
            group,
            model,
            None if shared else scorer,
            ppo={"samples_per_minibatch": minibatch, "ppo_epochs": 2, "entropy_coef": 0.01},
            learner={"tokens_per_microbatch": tokens, "learning_rate": 1e-6},
        ).train(rollouts(0))
        for tokens in (1, 40, 10_000)
    ]
    for other, name in product(runs[1:], runs[0].gradients):
        assert len(runs[0].gradients[name]) == 2 * (1 if minibatch is None else 2)
        for one, two in zip(runs[0].gradients[name], other.gradients[name], strict=True):
            scale = max(np.abs(gradient).max() for gradient in one.values())
            assert scale > 1e-3
            assert largest_difference(one, two) < 1e-6 * max(scale, 1)
    for key, value in runs[0].metrics.items():
        assert runs[1].metrics[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_two_equal_runs_are_bit_for_bit_equal(group, model, scorer):
    one, two = (Run(group, model, scorer, ppo={"ppo_epochs": 2}).train(rollouts(4)) for _ in range(2))
    assert largest_difference(weights(one.learner), weights(two.learner)) == 0
    assert one.metrics == two.metrics


def test_values_move_towards_the_returns_and_the_policy_towards_the_advantages(group, model, scorer):
    run = Run(group, model, scorer, ppo={"ppo_epochs": 8}, kl={"coef": 0})
    data = rollouts(3, 16)
    first = run.train(data, PPOIteration(0, 0.0)).metrics
    last = run.train(data, PPOIteration(1, 0.0)).metrics
    assert last["value/explained_variance"] > first["value/explained_variance"] + 0.2
    assert first["loss/policy"] < -0.01
    assert first["policy/ratio_max"] > 1
    assert first["policy/steps"] == first["critic/steps"] == 8


def test_metrics_without_a_reference_have_no_kl(group, model, scorer):
    metrics = Run(group, model, scorer).train(rollouts(0, reference=False)).metrics
    assert "kl/mean" not in metrics
    index, fetch = data = rollouts(0)
    metrics = Run(group, model, scorer, ppo={"old_logprobs": "generator"}).train(data).metrics
    gaps = [
        np.concatenate(table["response_logprobs"].to_pylist()).sum()
        - np.concatenate(references["reference_logprobs"].to_pylist()).sum()
        for table, references in map(fetch, (0, 1))
    ]
    assert metrics["kl/mean"] == pytest.approx(sum(gaps) / len(index), rel=1e-4)


def test_target_kl_stops_before_the_next_step(group, model, scorer):
    sections = {"learner": {"learning_rate": 0.02}}
    free = Run(group, model, scorer, ppo={"ppo_epochs": 4}, **sections).train(rollouts(2))
    assert free.metrics["policy/steps"] == 4
    held = Run(group, model, scorer, ppo={"ppo_epochs": 4, "target_kl": 1e-4}, **sections).train(rollouts(2))
    assert held.metrics["policy/steps"] == 1
    assert held.metrics["policy/stopped_early"] == 1
    assert held.metrics["policy/approx_kl"] > 1e-4
    once = Run(group, model, scorer, **sections).train(rollouts(2))
    policy = {name for name in weights(once.learner) if name.startswith("policy")}
    after = weights(held.learner)
    assert all(np.array_equal(after[name], weights(once.learner)[name]) for name in policy)
    assert all(p.grad is None for p in held.learner.trainables["policy"].parameters.values())


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "value_head"])
@pytest.mark.parametrize("old", ["learner", "generator"])
def test_a_frozen_policy_does_not_move_while_its_critic_learns(group, model, scorer, shared, old):
    run = Run(group, model, None if shared else scorer, ppo={"ppo_epochs": 2, "old_logprobs": old})
    before = weights(run.learner)
    metrics = run.train(rollouts(6, model=model), PPOIteration(0, KL_COEF, policy_frozen=True)).metrics
    after = weights(run.learner)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("critic/", "policy/value_head")) for name in moved)
    assert "policy/entropy" not in metrics
    assert metrics["loss/value"] > 0
    assert run.gap.tokens > 0


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "value_head"])
@pytest.mark.parametrize("old", ["learner", "generator"])
@pytest.mark.parametrize("minibatch", [None, 4])
def test_the_audit_stops_the_run_before_the_policy_moves(group, model, scorer, shared, old, minibatch):
    ppo = {"old_logprobs": old, "samples_per_minibatch": minibatch}
    run = Run(group, model, None if shared else scorer, sync=STRICT, ppo=ppo)
    before = weights(run.learner)
    with pytest.raises(AuditError, match="version 3"):
        run.train(rollouts(6), PPOIteration(3, KL_COEF))  # log-probs that are noise
    after = weights(run.learner)
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("policy"))
    right = Run(group, model, None if shared else scorer, sync=STRICT, ppo=ppo).train(rollouts(6, model=model))
    assert 0 < right.gap.max < 1e-4
    assert right.gap.tokens > 0


def test_audit_sees_a_log_prob_that_is_not_a_number(group, model, scorer):
    index, fetch = rollouts(6, model=model)
    table, references = fetch(0)
    values = table["response_logprobs"].to_pylist()
    values[1][0] = float("nan")
    broken = table.set_column(2, "response_logprobs", [values])
    run = Run(group, model, scorer, sync=STRICT)
    with pytest.raises(AuditError, match="NaN"):
        run.train((index, lambda batch: (broken, references) if batch == 0 else fetch(1)))


def test_a_reward_that_is_not_a_number_leaves_the_weights_alone(group, model):
    run = Run(group, model, None)
    before = weights(run.learner)
    index, fetch = rollouts(0)
    rewards = index.reward.copy()
    rewards[2] = np.nan
    with pytest.raises(DataError, match=r"gradient norm is nan at optimiser step 1.*rewards.*learning_rate"):
        run.train((replace(index, reward=rewards), fetch))
    assert largest_difference(before, weights(run.learner)) == 0


@pytest.mark.parametrize("generation", [{"temperature": 0.8}, {"top_k": 5}, {"top_p": 0.9}])
def test_whose_log_probs_are_the_old_ones(generation):
    def serve(choice, exact=False, **section):
        config = ppo_config(
            "m", ppo={"iterations": 1, "old_logprobs": choice}, generation=section, run={"exact": exact}
        )
        return generator_logprobs_serve(config)

    assert serve("auto")
    assert serve("generator")
    assert not serve("learner")
    assert not serve("auto", exact=True)
    assert not serve("auto", **generation)
    with pytest.raises(ConfigError, match=r"ppo\.old_logprobs.*learner"):
        serve("generator", **generation)


def test_lora_trains_adapters_and_value_head_only(group, model):
    run = Run(group, model, None, model={"name": model, "lora": {"r": 4}})
    names = set(run.learner.trainables["policy"].parameters)
    assert all(".lora_" in name or name.startswith("value_head.") for name in names)
    published = {name: tensor.clone() for name, tensor in run.learner.published_tensors()}
    run.train(rollouts(1))
    moved = {name for name, t in run.learner.published_tensors() if not torch.equal(t, published[name])}
    assert moved
    assert all("_proj" in name for name in moved)
