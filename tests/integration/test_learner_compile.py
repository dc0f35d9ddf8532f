"""torch.compile of the decoder layers: the same training, and no compilation per shape of micro-batch."""

import numpy as np
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

from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.integration


def test_compiled_layers_train_alike(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")  # conftest.py turns compilation off
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    group, model = single_rank(), save_tiny_model(tmp_path)
    found = []
    for compiled in (False, True):
        torch._dynamo.utils.counters.clear()
        rank = LearnerRank(sft_config(model, model={"name": model, "torch_compile": compiled}), group, total_steps=10)
        gradients = record_gradients(rank.trainables["policy"])
        objective = rank.sft(demonstrations(0, 30), None)
        for start in range(0, 30, 6):
            objective.step(np.arange(start, start + 6))
        found.append(gradients)
    group.close()
    for plain, compiled_gradients in zip(*found, strict=True):
        assert largest_difference(plain, compiled_gradients) < 1e-5
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
