"""Packing documents changes neither loss nor gradients, and a model in which it would is refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_world import (
    demonstrations,
    dpo_config,
    largest_difference,
    preferences,
    record_gradients,
    reward_config,
    sft_config,
)

from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.packing import Passes, check_packing, pack_rows
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.models.networks import PolicyOutput

pytestmark = pytest.mark.unit


def objective(stage, group, model, budget, packing, one_row=False):
    """(objective, what it trains) on twelve rows, six of them held out too."""
    learner = {"dtype": "float32", "tokens_per_microbatch": budget}
    table, build = preferences(1, 12), {"reward": reward_config, "dpo": dpo_config, "sft": sft_config}[stage]
    rank = LearnerRank(build(model, **{stage: {"packing": packing}}, learner=learner), group, total_steps=10)
    if stage == "sft":
        table = demonstrations(1, 12)
        made = rank.sft(table, table[:6])
    elif stage == "reward":
        made = rank.pairwise(table, table[:6])
    else:
        made = rank.dpo(table, table[:6])
    made.passes = replace(made.passes, one_row=one_row)
    if stage == "dpo":
        made.set_reference(
            made.reference_logprobs(np.arange(12)) - 0.1, made.reference_logprobs(np.arange(6), held_out=True) - 0.2
        )
    return made, next(iter(rank.trainables.values()))


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("budget", [40, 100, 10_000])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_packing_leaves_gradients_and_metrics_as_they_are(stage, group, model, budget, one_row):
    gradients, metrics = [], []
    for packing in (False, True):
        made, trained = objective(stage, group, model, budget, packing, one_row)
        held_out, recorded = made.evaluate(), record_gradients(trained)
        metrics.append(held_out | made.step(np.arange(12)))
        gradients += recorded
    assert largest_difference(*gradients) < 2e-6
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-6)


def test_packing_takes_fewer_tokens(group):
    lengths = np.random.default_rng(0).integers(2, 60, (64, 2))
    sizes = []
    for packing in (False, True):
        passes = Passes(group, 2048, packing).plan(np.arange(64), lengths)
        documents = [lengths[made.items].T.reshape(-1) for made in passes]
        rows = [made.rows or [[i] for i in range(len(d))] for made, d in zip(passes, documents, strict=True)]
        sizes.append(sum(len(r) * max(d[row].sum() for row in r) for r, d in zip(rows, documents, strict=True)))
    assert lengths.sum() <= sizes[1] < 1.1 * lengths.sum() < 1.2 * sizes[1] < sizes[0]


def test_rows_are_filled_and_never_overfull():
    lengths = [7, 1, 5, 3, 3, 9, 2]
    rows = pack_rows(lengths, 8)
    assert sorted(i for row in rows for i in row) == list(range(7))
    assert rows == [[5], [0, 1], [2, 3], [4, 6]]  # 9 is longer than a row and has one to itself
    assert pack_rows([], 8) == []


@given(
    st.integers(1, 20),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=16),
)
def test_every_item_is_in_one_micro_batch_of_one_rank(ranks, one_row, lengths):
    lengths, items = np.array(lengths), np.arange(len(lengths))[::2]
    groups = [SimpleNamespace(rank=rank, size=ranks) for rank in range(ranks)]
    plans = [Passes(group, 64, True, one_row).plan(items, lengths) for group in groups]
    assert len({len(plan) for plan in plans}) == 1
    passes = [made for plan in plans for made in plan if made.items]
    assert sorted(i for made in passes for i in made.items) == items.tolist()
    for made in passes:
        documents = lengths[made.items].T.reshape(-1)
        assert sorted(i for row in made.rows for i in row) == list(range(len(documents)))
        tokens = len(made.rows) * max(documents[row].sum() for row in made.rows)
        assert tokens <= 64 or len(made.items) == 1


class Leaky(torch.nn.Module):
    """Every log-prob knows what its row began with."""

    def __init__(self):
        super().__init__()
        self.lm = SimpleNamespace(
            base_model=SimpleNamespace(forward=lambda input_ids, position_ids: None),
            config=SimpleNamespace(vocab_size=50, _attn_implementation="sdpa"),
        )

    def forward(self, batch):
        return PolicyOutput(batch.input_ids[0, 0] * torch.ones(len(batch.targets)), torch.zeros(0))


def test_a_model_that_lets_documents_see_each_other_is_refused(group, model):
    rank = LearnerRank(sft_config(model), group, total_steps=1)
    check_packing(rank.trainables["policy"].network, group.device, "sft.packing")
    with pytest.raises(ConfigError, match=r"sft\.packing: .* not kept apart; set sft\.packing=false"):
        check_packing(Leaky(), group.device, "sft.packing")
    without_places = Leaky()
    without_places.lm.base_model.forward = lambda input_ids: None
    with pytest.raises(ConfigError, match=r"dpo\.packing: .* takes no position ids"):
        check_packing(without_places, group.device, "dpo.packing")
