"""DPO on real learner actors: it learns, exports what it says, resumes bit for bit; two ranks give what one does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from learner_world import Ranks, Tensors, dpo_config, largest_difference, preferences, record_gradients
from learner_world import weights as full_weights
from safetensors.torch import load_file
from tiny_runs import TinyRuns
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray import DPOTrainer
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.stage_result import StageResult

pytestmark = pytest.mark.integration


class InterruptAfterCheckpoint(Callback):
    """What a second Ctrl-C does, right after checkpoint `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, path: Path) -> None:
        if path.name == f"step-{self.step:06d}":
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpo")


@pytest.fixture(scope="module")
def dpo(ray_local: None, tiny: TinyRuns, root: Path) -> StageResult:
    """A run of 8 steps that nothing interrupts."""
    return DPOTrainer(tiny.dpo(root, "whole")).train()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(result: StageResult) -> dict[str, torch.Tensor]:
    return load_file(result.model / "model.safetensors")


def test_it_learns_and_the_exported_policy_has_the_margins_it_reports(dpo: StageResult, tiny: TinyRuns) -> None:
    assert dpo.steps == len(dpo.history) == 8
    assert dpo.before["eval/loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert dpo.after["eval/loss"] < 0.9 * dpo.before["eval/loss"]
    assert dpo.after["eval/accuracy"] == 1
    tokenizer = AutoTokenizer.from_pretrained(dpo.model)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (dpo.model, tiny.policy)]

    def reward(row: dict[str, Any], column: str) -> torch.Tensor:
        prompt = tokenizer(row["prompt"])["input_ids"]
        tokens = torch.tensor([*prompt, *tokenizer(row[column])["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            found = [model(tokens[None]).logits[0, :-1].log_softmax(-1) for model in models]
        policy, reference = (logprobs.gather(1, tokens[1:, None])[len(prompt) - 1 :].sum() for logprobs in found)
        return 0.1 * (policy - reference)

    held_out = rows(tiny.folder / "preferences_eval.jsonl")
    margins = torch.stack([reward(row, "chosen") - reward(row, "rejected") for row in held_out])
    assert margins.mean().item() == pytest.approx(dpo.after["eval/margin"], abs=1e-4)
    assert -logsigmoid(margins).mean().item() == pytest.approx(dpo.after["eval/loss"], abs=1e-5)


def test_an_interrupted_run_resumes_bit_for_bit_with_the_reference_it_has(
    dpo: StageResult, tiny: TinyRuns, root: Path
) -> None:
    saving = ("checkpoint.every=3", "checkpoint.asynchronous=false")
    config, folder = tiny.dpo(root, "interrupted", *saving), root / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        DPOTrainer(config, callbacks=[InterruptAfterCheckpoint(3)]).train()
    asked = (folder / "reference.parquet").stat().st_mtime_ns
    resumed = DPOTrainer(resume=folder).train()
    assert (folder / "reference.parquet").stat().st_mtime_ns == asked
    assert pq.read_table(folder / "reference.parquet").num_rows == 32 + 5
    assert len(resumed.history) == 5
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(dpo).items())
    assert (resumed.before, resumed.after) == (dpo.before, dpo.after)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_two_ranks_give_the_reference_the_gradients_and_the_weights_of_one(
    lora: dict[str, int] | None, two: Ranks, one: Ranks, tiny: TinyRuns
) -> None:
    """Precomputed, then with the adapters off; seven pairs leave the second rank a pass without any."""
    sections = {"model": {"name": tiny.policy, "lora": lora}, "learner": LEARNER}
    [(reference, gradients, weights, metrics)] = one.run(train, tiny.policy, sections)
    for rank in two.run(train, tiny.policy, sections):
        assert (rank[0] is None) == (reference is None) == (lora is not None)
        if reference is not None:
            np.testing.assert_allclose(rank[0], reference, atol=1e-4)
        for ours, theirs in zip(rank[1], gradients, strict=True):
            assert largest_difference(ours, theirs) < 1e-5
        assert largest_difference(rank[2], weights) < 1e-5
        for ours, theirs in zip(rank[3], metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert metrics[-1]["margin"] > metrics[0]["margin"] > 0


LEARNER = {"dtype": "float32", "learning_rate": 1e-4, "adam_eps": 1e-5, "tokens_per_microbatch": 64}


def train(
    group: LearnerGroup, model: str, sections: dict[str, Any]
) -> tuple[np.ndarray | None, list[Tensors], Tensors, list[dict[str, float]]]:
    """(reference log-probs, gradients of every step, final weights, what matters of the metrics)."""
    table = preferences(0, 7)
    rank = LearnerRank(dpo_config(model, **sections), group, total_steps=10)
    dpo, reference = rank.dpo(table, table), None
    if rank.config.precomputes_reference:
        reference = dpo.reference_logprobs(np.arange(7))
        dpo.set_reference(reference, reference)
    gradients = record_gradients(dpo.policy)
    found = []
    for step in range(3):
        dpo.step(np.arange(7)[step:])
        evaluation = dpo.evaluate()
        found.append({name: evaluation[f"eval/{name}"] for name in ("loss", "margin", "chosen")})
    return reference, gradients, full_weights(rank), found
