"""What the SFT loss covers, and that packing documents changes neither loss nor gradients."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_world import (
    demonstrations,
    largest_difference,
    record_gradients,
    save_tiny_model,
    sft_config,
    single_rank,
)
from transformers import AutoModelForCausalLM

from rlhf_ray import schema
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.packing import check_packing, pack_rows, packed_microbatches
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def group():
    group = single_rank()
    yield group
    group.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def objective(group, model, table, eval_table=None, tokens_per_microbatch=64, **sft):
    config = sft_config(model, sft=sft, learner={"dtype": "float32", "tokens_per_microbatch": tokens_per_microbatch})
    return LearnerRank(config, group, total_steps=10).sft(table, eval_table)


def with_masks(table):
    """`table` with a mask that covers every third token and the last one."""
    masks = [[int(i % 3 == 0 or i + 1 == len(row)) for i in range(len(row))] for row in table["tokens"].to_pylist()]
    return table.append_column(schema.LOSS_MASK_COLUMN, pa.array(masks, schema.LOSS_MASK))


def plain_loss(model, table, learned):
    """(mean cross-entropy, token accuracy) by Hugging Face's forward pass; `learned(row)` are a row's token indices."""
    lm, losses, hits = AutoModelForCausalLM.from_pretrained(model).eval(), [], []
    for row in table.to_pylist():
        ids, places = torch.tensor(row["tokens"]), learned(row)
        with torch.no_grad():
            logits = lm(ids[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[[p - 1 for p in places]])
        hits.append((logits.argmax(-1) == ids[1:])[[p - 1 for p in places]])
    return torch.cat(losses).mean().item(), torch.cat(hits).float().mean().item()


COVERED = {
    "completion": lambda row: range(row["prompt_length"], len(row["tokens"])),
    "all": lambda row: range(1, len(row["tokens"])),
    "assistant": lambda row: [i for i, mark in enumerate(row["loss_mask"]) if mark and i],
}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("loss_on", COVERED)
def test_loss_and_accuracy_are_of_the_covered_tokens(group, model, loss_on, packing):
    table = with_masks(demonstrations(0, 9))
    sft = objective(group, model, table, table, loss_on=loss_on, packing=packing)
    held_out = sft.evaluate()
    found = sft.step(np.arange(9))
    loss, accuracy = plain_loss(model, table, COVERED[loss_on])
    assert (found["loss/sft"], found["sft/token_accuracy"]) == pytest.approx((loss, accuracy), rel=1e-5)
    assert found["tokens"] == sum(len(COVERED[loss_on](row)) for row in table.to_pylist())
    # Held-out prompts are never learnt from, so they are not measured.
    loss, accuracy = plain_loss(model, table, COVERED["completion" if loss_on == "all" else loss_on])
    assert (held_out["eval/loss"], held_out["eval/token_accuracy"]) == pytest.approx((loss, accuracy), rel=1e-5)
    assert held_out["eval/perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("budget", [20, 64, 10_000])
def test_packing_leaves_the_gradient_as_it_is(group, model, budget, one_row):
    table, gradients = demonstrations(1, 12), []
    for packing in (False, True):
        sft = objective(group, model, table, tokens_per_microbatch=budget, packing=packing)
        sft._one_row = one_row
        recorded = record_gradients(sft.policy)
        sft.step(np.arange(12))
        gradients += recorded
    assert largest_difference(*gradients) < 1e-6


def test_packing_takes_fewer_rows(group, model):
    table = demonstrations(1, 12)
    sizes = []
    for packing in (False, True):
        sft = objective(group, model, table, tokens_per_microbatch=10_000, packing=packing)
        (batch,) = sft._batches(sft.train, np.arange(12))
        sizes.append(batch.input_ids.numel())
    real = sum(map(len, table["tokens"].to_pylist()))
    assert real <= sizes[1] < 1.2 * real < sizes[0]


def test_rows_are_filled_and_never_overfull():
    lengths = [7, 1, 5, 3, 3, 9, 2]
    rows = pack_rows(lengths, 8)
    assert sorted(i for row in rows for i in row) == list(range(7))
    assert rows == [[5], [0, 1], [2, 3], [4, 6]]  # 9 is longer than a row and has one to itself
    assert pack_rows([], 8) == []


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("ranks", [1, 3, 20])
def test_every_document_is_in_one_micro_batch_of_one_rank(ranks, one_row):
    lengths = np.random.default_rng(0).integers(1, 30, 16)
    plans = packed_microbatches(np.arange(2, 16), lengths, ranks, 64, one_row)
    assert len({len(plan) for plan in plans}) == 1
    batches = [batch for plan in plans for batch in plan]
    assert sorted(i for batch in batches for row in batch for i in row) == list(range(2, 16))
    for batch in batches:
        widest = max((sum(lengths[i] for i in row) for row in batch), default=0)
        assert widest * len(batch) <= 64


class Leaky(torch.nn.Module):
    """Every log-prob knows what its row began with."""

    def __init__(self):
        super().__init__()
        self.lm = SimpleNamespace(
            base_model=SimpleNamespace(forward=lambda input_ids, position_ids: None),
            config=SimpleNamespace(vocab_size=50, _attn_implementation="sdpa"),
        )

    def forward(self, batch):
        return SimpleNamespace(logprobs=batch.input_ids[0, 0] * torch.ones(len(batch.targets)))


def test_a_model_that_lets_documents_see_each_other_is_refused(group, model):
    rank = LearnerRank(sft_config(model), group, total_steps=1)
    check_packing(rank.trainables["policy"].network, group.device)
    with pytest.raises(ConfigError, match=r"sft\.packing: .* not kept apart; set sft\.packing=false"):
        check_packing(Leaky(), group.device)
    without_places = Leaky()
    without_places.lm.base_model.forward = lambda input_ids: None
    with pytest.raises(ConfigError, match="takes no position ids"):
        check_packing(without_places, group.device)


def test_nothing_to_learn_is_no_division_by_zero(group, model):
    table = demonstrations(0, 4)
    nothing = table.append_column(
        schema.LOSS_MASK_COLUMN, pa.array([[0] * len(row) for row in table["tokens"].to_pylist()], schema.LOSS_MASK)
    )
    found = objective(group, model, nothing, loss_on="assistant").step(np.arange(4))
    assert (found["loss/sft"], found["tokens"]) == (0.0, 1)
