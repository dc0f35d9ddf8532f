"""What the SFT loss covers, with documents in rows of their own and packed."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from learner_world import (
    demonstrations,
    sft_config,
)
from transformers import AutoModelForCausalLM

from rlhf_ray import schema
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit


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


def test_nothing_to_learn_is_no_division_by_zero(group, model):
    table = demonstrations(0, 4)
    nothing = table.append_column(
        schema.LOSS_MASK_COLUMN, pa.array([[0] * len(row) for row in table["tokens"].to_pylist()], schema.LOSS_MASK)
    )
    found = objective(group, model, nothing, loss_on="assistant").step(np.arange(4))
    assert (found["loss/sft"], found["tokens"]) == (0.0, 1)
