"""How tokens weigh in the policy's loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.averaging import token_weights, units

pytestmark = pytest.mark.unit

#: Responses of 1, 3 and 0 tokens.
MASK = torch.tensor([[True, False, False, False], [True, True, True, False], [False] * 4])


@pytest.mark.parametrize(
    ("average", "weights", "unit"),
    [
        ("token", [[1.0, 0, 0, 0], [1.0, 1.0, 1.0, 0], [0] * 4], 4),
        ("sequence", [[1.0, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0] * 4], 2),
        ("constant", [[0.1, 0, 0, 0], [0.1, 0.1, 0.1, 0], [0] * 4], 2),
    ],
)
def test_weights_by_hand(average, weights, unit):
    assert token_weights(MASK, average, 10).tolist() == [pytest.approx(row) for row in weights]
    assert units(MASK.sum(1), average) == unit


def test_the_means_that_they_make():
    losses = torch.tensor([[6.0, math.nan, 0, 0], [1.0, 2.0, 3.0, 0], [0.0] * 4]).nan_to_num()
    means = {
        average: ((token_weights(MASK, average, 12) * losses).sum() / units(MASK.sum(1), average)).item()
        for average in ("token", "sequence", "constant")
    }
    # token: (6 + 1 + 2 + 3) / 4. sequence: (6 + 2) / 2. constant: (6 / 12 + 6 / 12) / 2.
    assert means == pytest.approx({"token": 3.0, "sequence": 4.0, "constant": 0.5})


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6), cut=st.integers(0, 6), extra=st.integers(0, 3))
def test_neither_micro_batches_nor_padding_change_them(average, lengths, cut, extra):
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    weights = token_weights(mask, average, 6)
    parts = [token_weights(part, average, 6) for part in (mask[:cut], mask[cut:])]
    assert torch.equal(torch.cat(parts), weights)
    assert units(mask[:cut].sum(1), average) + units(mask[cut:].sum(1), average) == units(mask.sum(1), average)
    longer = torch.cat([mask, torch.zeros(len(lengths), extra, dtype=torch.bool)], dim=1)
    assert torch.equal(token_weights(longer, average, 6)[:, :6], weights)
    assert not token_weights(longer, average, 6)[~longer].any()
