"""The model card: what a run's folder says, in a form that hubs read, without this machine's paths."""

import json
from pathlib import Path

import pytest
import yaml
from learner_world import ppo_config, sft_config

from rlhf_ray.config.base import Section
from rlhf_ray.config.load import to_yaml
from rlhf_ray.export.card import card, hub_name
from rlhf_ray.export.record import RunRecord
from rlhf_ray.export.report import ExportReport, Written
from rlhf_ray.export.source import Source
from rlhf_ray.export.verify import Gap

pytestmark = pytest.mark.unit

HUB_DATA = {"path": "Anthropic/hh-rlhf", "max_samples": 500}
REWARDS = {"short": {"type": "function", "function": "mine:short", "weight": 0.5}}
METRICS = [
    {"step": 0, "eval/reward/mean": 0.1},
    {"step": 1, "reward/mean": 0.2, "kl/mean": 0.01, "audit/max_gap": 2e-6, "audit/mean_gap": 1e-7, "seconds/train": 3},
    {"step": 2, "reward/mean": 0.4, "kl/mean": None, "audit/max_gap": 5e-6, "audit/mean_gap": 3e-7,
     "weights/version": 2, "eval/reward/mean": 0.5},
]  # fmt: skip


def write_run(folder: Path, config: Section, metrics: list[dict[str, float | None]]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    start = {"started": "2026-01-01T00:00:00+0000", "platform": "Linux", "cores": 2, "packages": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps([{"started": "earlier", "packages": {}}, start]))
    return folder


@pytest.fixture
def ppo_run(tmp_path):
    """PPO on what SFT made of a model from the hub, both runs' folders still there."""
    write_run(tmp_path / "my-sft", sft_config("gpt2-org/gpt2", data=HUB_DATA), [{"step": 1, "loss/sft": 2.0}])
    config = ppo_config(str(tmp_path / "my-sft" / "policy"), data=HUB_DATA, rewards=REWARDS)
    return write_run(tmp_path / "my-ppo", config, METRICS)


def report(kind="policy", **formats):
    written = {
        name.replace("_", "-"): Written("onnxruntime 1.31.1", Gap(largest, largest / 10, 0.0, 90), 1e-4, 2_000_000)
        for name, largest in formats.items()
    }
    return ExportReport(Path("out"), "x", kind, "3 sequences", written, {"packages": {"torch": "2.14.0"}})


def test_a_record_reads_how_the_run_went(ppo_run):
    record = RunRecord.read(ppo_run)
    assert (record.stage, record.name) == ("ppo", "my-ppo")
    assert record.telling_metrics() == {
        "eval/reward/mean": (0.1, 0.5), "reward/mean": (0.2, 0.4), "kl/mean": (0.01, 0.01),
    }  # fmt: skip
    syncs = record.syncs()
    assert (syncs.iterations, syncs.version, syncs.largest_gap) == (2, 2, 5e-6)
    assert syncs.mean_gap == pytest.approx(2e-7)
    assert record.parent.stage == "sft"
    assert record.parent.parent is None


def test_a_run_without_generators_has_no_syncs(ppo_run):
    assert RunRecord.read(ppo_run.parent / "my-sft").syncs() is None


def test_a_card_tells_data_configuration_metrics_syncs_and_versions(ppo_run):
    record = RunRecord.read(ppo_run)
    text = card(Source("x", "x", "policy", ppo_run), record, report(onnx=3e-6), {"onnx": "onnx"})
    facts = [
        "# my-ppo",
        "`gpt2-org/gpt2` → supervised fine-tuning (`my-sft`) → PPO (`my-ppo`)",
        "| data | Anthropic/hh-rlhf, split train, max_samples 500 |",
        "| reward `short` | function, weight 0.5 |",
        "| `eval/reward/mean` | 0.1 | 0.5 |",
        "by 2e-07 nats on average and by 5e-06 at most",
        "| onnx | 2.00 MB | 3e-06 | 3e-07 | 0.0001 | onnxruntime 1.31.1 |",
        'InferenceSession("onnx/model.onnx")',
        "| torch | 2.13.0 | 2.14.0 |",
        "prompts_per_iteration:",
    ]
    assert [fact for fact in facts if fact not in text] == []


def test_front_matter_names_only_what_a_hub_can_follow(ppo_run):
    def matter(run: Path, folders: dict[str, str]):
        text = card(Source("x", "x", "policy", run, run / "adapter"), RunRecord.read(run), report(onnx=0.0), folders)
        return yaml.safe_load(text.split("---\n")[1])

    of_sft = matter(ppo_run.parent / "my-sft", {"adapter": "."})
    assert of_sft["base_model"] == "gpt2-org/gpt2"
    assert of_sft["datasets"] == ["Anthropic/hh-rlhf"]
    assert of_sft["library_name"] == "peft"
    of_ppo = matter(ppo_run, {"onnx": "onnx"})
    assert "base_model" not in of_ppo
    assert of_ppo["tags"] == ["rlhf-ray", "ppo", "lora"]
    assert of_ppo["library_name"] == "transformers"


def test_paths_of_this_machine_stay_in_the_configuration(ppo_run):
    text = card(Source(str(ppo_run), "x", "policy", ppo_run), RunRecord.read(ppo_run), report(onnx=0.0), {"onnx": "."})
    assert str(ppo_run.parent) not in text.split("<details>")[0]


def test_a_model_of_no_run_has_a_card_too():
    text = card(Source("org/model", "org/model", "reward model"), None, report("reward model", onnx=0.0), {"onnx": "."})
    assert "# model\n" in text
    assert "A reward model, exported from `org/model`" in text
    assert "largest score gap" in text
    assert "scores = session.run" in text


@pytest.mark.parametrize(
    ("name", "is_hub"),
    [("org/model", True), ("gpt2", False), ("data/prompts.jsonl", False), ("/a/b", False), ("./a", False)],
)
def test_hub_names(name, is_hub):
    assert hub_name(name) is is_hub
