"""What proves an export: gaps, tolerances, and that a graph which lets padding in or fixes a shape is seen."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_world import VOCABULARY, save_tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_ray.errors import AuditError
from rlhf_ray.export.graph import GraphModule
from rlhf_ray.export.source import Source
from rlhf_ray.export.verify import Gap, check, compare, graph_outputs, model_outputs

pytestmark = pytest.mark.unit

RANDOM = np.random.default_rng(0)
SEQUENCES = [RANDOM.integers(3, VOCABULARY, length) for length in (5, 2, 17, 9, 30, 3)]


def test_gap_is_over_all_values_of_all_sequences():
    gap = compare([np.array([0.0, 1.0]), np.array([2.0])], [np.array([0.5, 1.0]), np.array([1.0])])
    assert gap == Gap(largest=1.0, mean=0.5, shift=pytest.approx(-1 / 6), values=3)


def test_a_gap_past_its_tolerance_says_how_far_and_over_what():
    check("onnx", Gap(1e-4, 1e-5, 0.0, 12), 1e-4)
    with pytest.raises(
        AuditError, match=r"export onnx: .* differ by up to 0\.5 \(mean 0\.25 over 12 values\).*0\.0001"
    ):
        check("onnx", Gap(0.5, 0.25, 0.0, 12), 1e-4)


def test_without_tolerance_only_what_is_no_number_fails():
    check("onnx-int8", Gap(7.0, 1.0, 0.0, 3), None)
    broken = compare([np.zeros(2)], [np.array([0.0, math.nan])])
    for tolerance in (None, 1e-4):
        with pytest.raises(AuditError, match="not finite"):
            check("onnx-int8", broken, tolerance)


@pytest.fixture(scope="module", params=["policy", "reward model"])
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    source = Source.find(save_tiny_model(folder, scalar=request.param == "reward model"))
    assert source.kind == request.param
    return source.load(), source.kind


def test_a_graph_says_what_its_model_says_whatever_the_batch(loaded):
    model, kind = loaded
    expected = model_outputs(model, kind, SEQUENCES)
    gap = compare(expected, graph_outputs(GraphModule(model, kind).eval(), kind, SEQUENCES))
    assert gap.largest < 1e-5
    assert gap.values == (len(SEQUENCES) if kind == "reward model" else sum(map(len, SEQUENCES)) - len(SEQUENCES))


def test_padding_may_stand_on_the_left(loaded):
    model, kind = loaded
    graph = GraphModule(model, kind).eval()
    ids = torch.from_numpy(SEQUENCES[0])[None]
    padded = torch.cat([torch.full((1, 3), 7), ids], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.int64), torch.ones_like(ids)], 1)
    with torch.no_grad():
        plain, left = graph(ids, torch.ones_like(ids)), graph(padded, mask)
    left = left[:, 3:] if kind == "policy" else left
    torch.testing.assert_close(left, plain, rtol=0, atol=1e-5)


def test_models_with_position_tables_count_from_the_first_real_token():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=32, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    gap = compare(
        model_outputs(model, "policy", SEQUENCES),
        graph_outputs(GraphModule(model, "policy").eval(), "policy", SEQUENCES),
    )
    assert gap.largest < 1e-5


def test_a_score_read_at_the_padding_is_seen(tmp_path: Path):
    model = Source.find(save_tiny_model(tmp_path, scalar=True)).load()

    def careless(input_ids, attention_mask):
        return model.score(model.base_model(input_ids, use_cache=False)[0][:, -1])[:, 0]

    gap = compare(model_outputs(model, "reward model", SEQUENCES), graph_outputs(careless, "reward model", SEQUENCES))
    assert gap.largest > 0.05


def test_a_graph_that_fixed_its_batch_is_seen(tmp_path: Path):
    """As a trace does that turned a size into a number: every row of a larger batch gets the first row's answer."""
    model = Source.find(save_tiny_model(tmp_path)).load()

    def fixed(input_ids, attention_mask):
        return model(input_ids[:1], use_cache=False).logits.expand(len(input_ids), -1, -1)

    gap = compare(model_outputs(model, "policy", SEQUENCES), graph_outputs(fixed, "policy", SEQUENCES))
    assert gap.largest > 0.5
