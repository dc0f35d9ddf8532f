"""DPO on real learner actors: it learns, exports what it says, resumes bit for bit, and two ranks give what one does."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TinyRuns
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray import DPOTrainer, LoraConfig
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.stage_result import StageResult

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


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
    config, folder = tiny.dpo(root, "interrupted", "checkpoint.every=3"), root / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        DPOTrainer(config, callbacks=[InterruptAfterCheckpoint(3)]).train()
    asked = (folder / "reference.parquet").stat().st_mtime_ns
    resumed = DPOTrainer(resume=folder).train()
    assert (folder / "reference.parquet").stat().st_mtime_ns == asked
    assert pq.read_table(folder / "reference.parquet").num_rows == 32 + 5
    assert len(resumed.history) == 5
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(dpo).items())
    assert (resumed.before, resumed.after) == (dpo.before, dpo.after)


def test_two_ranks_with_adapters_give_the_losses_of_one(tiny: TinyRuns, root: Path) -> None:
    """In the Python form; the reference is the policy without its adapters."""
    found = {}
    for ranks in (1, 2):
        trainer = DPOTrainer(
            tiny.policy,
            data={name: str(tiny.folder / f"{file}.jsonl") for name, file in FILES.items()},
            training={"pairs_per_step": 8, "learning_rate": 1e-3, "learner.ranks": ranks, "tokens_per_microbatch": 96}
            | {"adam_eps": 1e-5, "dtype": "float32"},
            lora=LoraConfig(r=2),
            run={"root": str(root), "name": f"ranks-{ranks}"},
        )
        found[ranks] = trainer.train()
        assert not (root / f"ranks-{ranks}" / "reference.parquet").exists()
    assert found[2].after == pytest.approx(found[1].after, abs=1e-5)
    for one, two in zip(found[1].history, found[2].history, strict=True):
        assert two["loss/dpo"] == pytest.approx(one["loss/dpo"], abs=1e-5)
    assert found[1].history[-1]["rewards/margin"] > 1e-3
    worst = max((tensor - weights(found[2])[name]).abs().max().item() for name, tensor in weights(found[1]).items())
    assert worst < 1e-5


FILES = {"path": "preferences", "eval_path": "preferences_eval"}
