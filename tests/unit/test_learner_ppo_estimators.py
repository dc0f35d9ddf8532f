"""The PPO objective with critic-free estimators and clip variants, against plain models; the passes it makes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_world import grouped, ppo_config, record_gradients, rollouts
from transformers import AutoModelForCausalLM

from rlhf_ray.errors import DataError
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit

KL_COEF = 0.1
ITERATION = PPOIteration(0, KL_COEF)
SAMPLES, PER_PROMPT = 7, 3  # two prompts with three responses, one with a single response
LOSS_KL = {"placement": "loss", "estimator": "k3"}


@pytest.fixture(scope="module")
def data(model):
    """Samples of three prompts, from an engine whose log-probs differ from the model's by 0.3 or so per token."""
    index, fetch = grouped(rollouts(0, SAMPLES, model=model), PER_PROMPT)
    random = np.random.default_rng(1)

    def differing(table):
        column = [[value + 0.3 * random.standard_normal() for value in row] for row in table[2].to_pylist()]
        return table.set_column(2, "response_logprobs", pa.array(column, pa.list_(pa.float32())))

    batches = [(differing(table), references) for table, references in map(fetch, (0, 1))]
    return index, batches.__getitem__


class Run:
    """A learner over one config, its gradients recorded and its forward passes counted."""

    def __init__(self, group, folder, *, ppo, learner=None, **sections):
        chosen = {"iterations": 1, "samples_per_prompt": PER_PROMPT, "old_logprobs": "learner"} | ppo
        options = {"tokens_per_microbatch": 64, "learning_rate": 1e-5} | (learner or {})
        self.learner = LearnerRank(ppo_config(folder, ppo=chosen, learner=options, **sections), group, total_steps=100)
        self.objective = self.learner.ppo("float32")
        (self.policy,) = self.learner.trainables.values()  # no critic
        self.gradients, self.passes = record_gradients(self.policy), 0
        self.policy.network.register_forward_pre_hook(self._count)

    def _count(self, *arguments):
        self.passes += 1

    def train(self, data, iteration=ITERATION):
        self.metrics, self.gap = self.objective.train(*data, iteration)
        return self


def group_advantage(name, returns, i, groups):
    """Of sample i, as the papers have it; 0 alone in its group."""
    own = [value for value, group in zip(returns, groups, strict=True) if group == groups[i]]
    if len(own) == 1:
        return 0.0
    difference = returns[i] - sum(own) / len(own)
    if name == "grpo":
        return difference / np.std(own, ddof=1)
    return difference * len(own) / (len(own) - 1) if name == "rloo" else difference


def plain_gradients(model, config, data):
    """Gradients of the first update, written down sample by sample with a plain model and no padding."""
    (index, fetch), ppo, kl = data, config.ppo, config.kl
    lm = AutoModelForCausalLM.from_pretrained(model).eval()
    samples, returns = [], []
    for i in range(len(index)):
        table, references = fetch(int(index.batch[i]))
        row = table.slice(int(index.row[i]), 1).to_pylist()[0]
        prompt, response = row["prompt_tokens"], row["response_tokens"]
        logps = torch.log_softmax(lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1], -1)
        logprobs = logps[torch.arange(len(response)), torch.tensor(response)]
        generated = torch.tensor(row["response_logprobs"])
        old = generated if ppo.old_logprobs == "generator" else logprobs.detach()
        reference = torch.tensor(references["reference_logprobs"][int(index.row[i])].as_py())
        penalty = KL_COEF * (old - reference) * (kl.placement == "reward")
        samples.append((logprobs, old, generated, reference, penalty))
        returns.append(index.reward[i] - penalty.sum().item())
    lengths = [len(sample[0]) for sample in samples]
    if ppo.advantage == "reinforce_pp":
        advantages = [
            index.reward[i] - torch.flip(torch.cumsum(torch.flip(s[4], [0]), 0), [0]) for i, s in enumerate(samples)
        ]
        everything = torch.cat(advantages)
        advantages = [(a - everything.mean()) / everything.std(unbiased=False) for a in advantages]
    else:
        values = [group_advantage(ppo.advantage, returns, i, index.prompt_id) for i in range(len(index))]
        if ppo.advantage == "reinforce_pp_baseline":
            values = np.array(values) / np.sqrt(np.average(np.square(values), weights=lengths))
        advantages = [torch.full((length,), float(v)) for v, length in zip(values, lengths, strict=True)]
    loss = 0.0
    for (logprobs, old, generated, reference, _), advantage in zip(samples, advantages, strict=True):
        ratio = (logprobs - old).exp()
        if ppo.ratio == "sequence":
            ratio = (logprobs - old).mean().exp()
        low, high = 1 - ppo.clip_range, 1 + (ppo.clip_range_high or ppo.clip_range)
        tokens = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        if ppo.dual_clip:
            tokens = torch.where(advantage < 0, torch.minimum(tokens, -ppo.dual_clip * advantage), tokens)
        if ppo.tis_cap:
            tokens = tokens * (old - generated).exp().clamp(max=ppo.tis_cap)
        if kl.placement == "loss":
            difference = reference - logprobs
            tokens = tokens + KL_COEF * (difference.exp() - 1 - difference)
        match EXPECTED_AVERAGE.get(ppo.advantage, "token") if ppo.ratio == "token" else "sequence":
            case "token":
                loss = loss + tokens.sum() / sum(lengths)
            case "sequence":
                loss = loss + tokens.mean() / len(samples)
            case "constant":
                loss = loss + tokens.sum() / config.generation.max_new_tokens / len(samples)
    loss.backward()
    return {f"lm.{name}": parameter.grad.numpy() for name, parameter in lm.named_parameters()}


EXPECTED_AVERAGE = {"grpo": "sequence", "grpo_no_std": "sequence", "dr_grpo": "constant"}


@pytest.mark.parametrize("budget", [30, 10_000], ids=["micro-batches", "one-pass"])
@pytest.mark.parametrize(
    ("ppo", "sections"),
    [
        ({"advantage": "grpo"}, {}),
        ({"advantage": "grpo", "old_logprobs": "generator", "clip_range": 0.1, "clip_range_high": 0.4}, {}),
        ({"advantage": "grpo_no_std", "old_logprobs": "generator", "ratio": "sequence"}, {"kl": LOSS_KL}),
        ({"advantage": "dr_grpo"}, {"kl": LOSS_KL, "generation": {"max_new_tokens": 12}}),
        ({"advantage": "rloo", "old_logprobs": "generator", "dual_clip": 1.1}, {}),
        ({"advantage": "reinforce_pp"}, {}),
        ({"advantage": "reinforce_pp_baseline", "tis_cap": 1.1}, {"kl": LOSS_KL}),
    ],
    ids=["grpo", "clip-higher", "gspo", "dr_grpo", "rloo-dual-clip", "reinforce_pp", "reinforce_pp_baseline-tis"],
)
def test_first_update_is_that_of_a_plain_model(group, model, data, ppo, sections, budget):
    run = Run(group, model, ppo=ppo, learner={"tokens_per_microbatch": budget}, **sections)
    expected = plain_gradients(model, run.learner.config, data)
    run.train(data)
    (ours,) = run.gradients
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 1e-3
    for parameter, gradient in expected.items():
        np.testing.assert_allclose(ours[parameter], gradient, rtol=1e-3, atol=5e-6, err_msg=parameter)


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_groups_without_signal_give_no_gradient_at_all(group, model, data, advantage):
    index, fetch = data
    equal = replace(index, reward=np.array([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 5.0]))
    run = Run(group, model, ppo={"advantage": advantage}, kl={"coef": 0}).train((equal, fetch), PPOIteration(0, 0.0))
    assert all(not gradient.any() for gradient in run.gradients[0].values())
    assert run.metrics["loss/policy"] == 0
    differs = replace(equal, reward=np.where(np.arange(SAMPLES) == 4, 0.8, equal.reward))
    run.train((differs, fetch), PPOIteration(1, 0.0))
    assert any(gradient.any() for gradient in run.gradients[1].values())


@pytest.mark.parametrize(
    ("ppo", "kl", "ahead"),
    [
        ({"old_logprobs": "generator"}, {}, 0),
        ({"old_logprobs": "learner"}, LOSS_KL, 0),  # the update's first pass yields the old log-probs
        ({"old_logprobs": "learner"}, {}, 1),  # the advantages contain the KL under them
        ({"old_logprobs": "learner", "samples_per_minibatch": 4}, LOSS_KL, 1),  # the second minibatch comes too late
    ],
    ids=["generator", "first-pass", "kl-in-reward", "minibatches"],
)
def test_no_pass_is_made_twice(group, model, data, ppo, kl, ahead):
    run = Run(group, model, ppo={"advantage": "grpo", "ppo_epochs": 2} | ppo, kl=kl)
    run.train(data)
    steps = 2 * (2 if "samples_per_minibatch" in ppo else 1)
    assert run.metrics["policy/steps"] == steps
    per_epoch = run.passes // (2 + ahead)
    assert run.passes == per_epoch * (2 + ahead)
    assert per_epoch > steps // 2  # several micro-batches
    assert run.gap.tokens > 0


def test_a_single_micro_batch_needs_no_pass_ahead(group, model, data):
    run = Run(group, model, ppo={"advantage": "grpo"}, learner={"tokens_per_microbatch": 10_000})
    assert run.train(data).passes == 1


def test_metrics_without_a_critic(group, model, data):
    run = Run(group, model, ppo={"advantage": "rloo", "tis_cap": 1.05}).train(data)
    assert not [name for name in run.metrics if name.startswith(("value/", "critic/", "loss/value"))]
    assert run.metrics["kl/mean"] != 0
    assert 0 < run.metrics["policy/tis_mean"] <= 1.05
    assert 0 < run.metrics["policy/tis_capped_fraction"] < 1
    assert run.metrics["policy/ratio_max"] == 1  # one update: the old log-probs are its own


@pytest.mark.parametrize("advantage", ["grpo", "reinforce_pp"])
def test_a_reward_that_is_not_a_number_stops_the_run(group, model, data, advantage):
    index, fetch = data
    broken = replace(index, reward=np.where(np.arange(SAMPLES) == 2, np.nan, index.reward))
    with pytest.raises(DataError, match="gradient norm is nan"):
        Run(group, model, ppo={"advantage": advantage}).train((broken, fetch))


@pytest.mark.parametrize("advantage", ["grpo", "reinforce_pp"])
def test_the_policy_moves_towards_what_is_rewarded(group, model, advantage):
    data = grouped(rollouts(3, 12, model=model), 4)
    run = Run(group, model, ppo={"advantage": advantage, "ppo_epochs": 6}, learner={"learning_rate": 1e-3})
    assert run.train(data, PPOIteration(0, 0.0)).metrics["loss/policy"] < -0.01
    assert run.metrics["policy/ratio_max"] > 1.05
