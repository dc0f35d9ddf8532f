"""Exports of trained models, loaded back by each format's own runtime: transformers, peft, onnxruntime, torch.

One learner in this process trains a GPT-2 with adapters, another a reward model; both are exported once, in all forms.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from learner_world import demonstrations, preferences, reward_config, sft_config, single_rank
from tiny_models import save_tiny
from transformers import AutoModelForSequenceClassification

import rlhf_ray
from rlhf_ray.config.base import Section
from rlhf_ray.export import FORMATS
from rlhf_ray.export.report import ExportReport
from rlhf_ray.export.source import Source, load_adapted
from rlhf_ray.export.verify import compare, model_outputs
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.integration

STATS = RewardStats(0.25, 2.0)


@pytest.fixture(scope="module")
def group() -> Iterator[LearnerGroup]:
    group = single_rank()
    yield group
    group.close()


def train(config: Section, group: LearnerGroup, root: Path) -> Path:
    """A run's folder as a stage leaves it: configuration, metrics, environment, model and adapter."""
    folder = RunFolder.create(config.run.model_copy(update={"root": str(root)}), "stage")  # type: ignore[attr-defined]
    folder.write_start(config, "sft")
    rank: Any = LearnerRank(config, group, 4)  # type: ignore[arg-type]
    reward = hasattr(config, "reward")
    objective = rank.pairwise(preferences(0, 8), None) if reward else rank.sft(demonstrations(0, 8), None)
    metrics = MetricsFile(folder.metrics_file)
    for step in range(4):
        metrics.log(step + 1, objective.step(np.arange(8)))
    metrics.close()
    rank.export(folder.policy, STATS if reward else None)
    return folder.path


@pytest.fixture(scope="module")
def policy(group: LearnerGroup, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportReport, Path]:
    """A GPT-2 (transposed weights, tied head) trained by LoRA, in every form."""
    root = tmp_path_factory.mktemp("policy")
    base = save_tiny("gpt2", root)
    config = sft_config(base, run={"name": "tuned"}, model={"name": base, "lora": {"r": 4}})
    run = train(config, group, root / "runs")
    return rlhf_ray.export_model(run, list(FORMATS), root / "out"), run


@pytest.fixture(scope="module")
def reward_model(group: LearnerGroup, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportReport, Path]:
    root = tmp_path_factory.mktemp("reward")
    base = save_tiny("llama_tied", root)
    run = train(reward_config(base, run={"name": "judge"}), group, root / "runs")
    return rlhf_ray.export_model(run, ["safetensors", "onnx", "torchscript"], root / "out"), run


def test_a_policy_keeps_its_log_probs_in_every_form(policy: tuple[ExportReport, Path]) -> None:
    report, _ = policy
    gaps = {name: form.gap for name, form in report.formats.items()}
    assert list(gaps) == list(FORMATS)
    assert gaps["safetensors"].largest == 0.0
    assert gaps["adapter"].largest == 0.0, "peft merges to the learner's own bits"
    for name in ("onnx", "torch-export", "torchscript"):
        assert gaps[name].largest < 1e-4
    assert 0.0 < gaps["onnx-int8"].mean < 0.5
    assert {gap.values for gap in gaps.values()} == {gaps["onnx"].values}
    assert gaps["onnx"].values > 300


def test_figures_and_card_are_on_disk(policy: tuple[ExportReport, Path]) -> None:
    report, _ = policy
    stored = json.loads((report.folder / "export.json").read_text())
    assert stored["formats"]["onnx"]["gap"]["largest"] == report.formats["onnx"].gap.largest
    assert stored["formats"]["onnx"]["runtime"].startswith("onnxruntime 1.")
    card = (report.folder / "README.md").read_text()
    assert "| trained | LoRA, r 4, alpha 16 |" in card
    assert "## Results" in card
    assert "| steps | 4 |" in card


def test_onnx_takes_any_batch_and_time_under_readable_names(policy: tuple[ExportReport, Path]) -> None:
    session = onnxruntime.InferenceSession(str(policy[0].folder / "onnx" / "model.onnx"))
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("input_ids", ["batch", "time"]),
        ("attention_mask", ["batch", "time"]),
    ]
    assert session.get_outputs()[0].name == "logits"
    for shape in ((1, 1), (5, 3), (1, 128)):
        ids = np.ones(shape, dtype=np.int64)
        (logits,) = session.run(None, {"input_ids": ids, "attention_mask": ids})
        assert logits.shape[:2] == shape
        assert np.isfinite(logits).all()


def test_int8_holds_int8_products_and_is_smaller(policy: tuple[ExportReport, Path]) -> None:
    files = [policy[0].folder / name / "model.onnx" for name in ("onnx", "onnx-int8")]
    kinds = [{node.op_type for node in onnx.load(file).graph.node} for file in files]
    assert "MatMulInteger" not in kinds[0]
    assert "MatMulInteger" in kinds[1]
    assert "Gemm" not in kinds[1], "a layer kept its float32 product"
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size


def test_an_adapter_of_a_quantised_base_is_compared_on_that_base(group: LearnerGroup, tmp_path: Path) -> None:
    base = save_tiny("llama_untied", tmp_path)
    config = sft_config(base, model={"name": base, "lora": {"r": 4}, "quantization": "4bit"})
    run = train(config, group, tmp_path / "runs")
    report = rlhf_ray.export_model(run, ["safetensors", "adapter"], tmp_path / "out")
    assert report.formats["safetensors"].gap.largest == 0.0
    assert report.formats["adapter"].gap.largest < 1e-4
    assert "LoRA, r 4, alpha 16 on a 4bit base" in (report.folder / "README.md").read_text()
    plain = load_adapted(report.folder / "adapter", "policy")
    tokens = [np.arange(3, 30)]
    source = Source.find(run).load()
    gap = compare(model_outputs(source, "policy", tokens), model_outputs(plain, "policy", tokens))
    assert gap.largest > 1e-3, "on the unquantised base it is another model"


def test_a_reward_model_keeps_its_scores_and_their_scale(reward_model: tuple[ExportReport, Path]) -> None:
    report, run = reward_model
    assert report.kind == "reward model"
    assert report.formats["safetensors"].gap.largest == 0.0
    assert max(report.formats[name].gap.largest for name in ("onnx", "torchscript")) < 1e-4
    assert RewardStats.load(report.folder / "safetensors") == STATS
    model = AutoModelForSequenceClassification.from_pretrained(run / "policy").eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        score = model.score(model.base_model(ids)[0][:, -1])[0, 0].item()
    session = onnxruntime.InferenceSession(str(report.folder / "onnx" / "model.onnx"))
    padded = {"input_ids": np.pad(ids.numpy(), ((0, 0), (4, 0))), "attention_mask": np.r_[[0] * 4, [1] * 12][None]}
    assert session.run(None, padded)[0] == pytest.approx([score], abs=1e-4)
