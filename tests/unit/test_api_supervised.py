"""The supervised trainers in Python: the configuration that YAML gives, errors by argument, readable results."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rlhf_ray.config import RewardModelConfig, SFTConfig
from rlhf_ray.config.common import LoraSection
from rlhf_ray.config.load import load_config
from rlhf_ray.config.training import TrainingConfig, short_names
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.reward_model import RewardTrainer
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.sft import SFTTrainer
from rlhf_ray.trainers.stage_result import StageResult

pytestmark = pytest.mark.unit

YAML = """
run: {root: /runs, seed: 3}
model: {name: gpt2, lora: {r: 4, alpha: 8.0}}
data: {path: rows.jsonl, max_samples: 100}
sft: {epochs: 2, samples_per_step: 16}
learner: {learning_rate: 1.0e-4, adam_beta2: 0.99}
checkpoint: {every: 5}
"""


@pytest.fixture
def from_yaml(tmp_path: Path) -> SFTConfig:
    (tmp_path / "sft.yaml").write_text(YAML)
    return load_config(SFTConfig, [tmp_path / "sft.yaml"])


def test_python_and_yaml_build_the_same_configuration(from_yaml: SFTConfig) -> None:
    options = {"epochs": 2, "samples_per_step": 16, "learning_rate": 1e-4, "save_every": 5, "seed": 3}
    trainer = SFTTrainer(
        "gpt2",
        data={"path": "rows.jsonl", "max_samples": 100},
        lora=LoraSection(r=4, alpha=8.0),
        training=options | {"learner.adam_beta2": 0.99},
        run={"root": "/runs"},
    )
    assert trainer.config == from_yaml == SFTTrainer(from_yaml).config
    typed = SFTTrainer(from_yaml, training=TrainingConfig(epochs=3, learning_rate=2e-4)).config
    assert (typed.sft.epochs, typed.learner.learning_rate, typed.sft.samples_per_step) == (3, 2e-4, 16)


def test_a_run_is_resumed_with_its_own_configuration(from_yaml: SFTConfig, tmp_path: Path) -> None:
    RunFolder(tmp_path).write_start(from_yaml, "sft")
    assert SFTTrainer(resume=tmp_path).config == from_yaml
    assert SFTTrainer(resume=tmp_path, training={"epochs": 5}).config.sft.epochs == 5
    with pytest.raises(ConfigError, match=r"SFTTrainer: give a model, a SFTConfig, or the folder of a run to resume"):
        SFTTrainer()


def test_rows_in_memory_are_stored_below_the_runs(tmp_path: Path) -> None:
    pairs = [{"prompt": "one", "chosen": "two", "rejected": "three"}]
    config = RewardTrainer("gpt2", data=pairs, run={"root": str(tmp_path)}).config
    assert Path(config.data.path).parent == tmp_path / "data"
    assert pq.read_table(config.data.path).to_pylist() == pairs
    texts = SFTTrainer("gpt2", data=["a text"], run={"root": str(tmp_path)}).config.data.path
    assert pq.read_table(texts).to_pylist() == [{"text": "a text"}]


@pytest.mark.parametrize(("cls", "stage"), [(SFTConfig, "sft"), (RewardModelConfig, "reward")])
def test_short_names_are_the_stage_s_own_fields_and_common_options(cls: Any, stage: str) -> None:
    names = short_names(cls, stage)
    assert set(cls.model_fields[stage].annotation.model_fields) <= set(names)
    assert names["epochs"] == f"{stage}.epochs"
    assert names["learning_rate"] == "learner.learning_rate"
    assert "gamma" not in names


def test_what_is_wrong_is_named_with_its_argument(from_yaml: SFTConfig) -> None:
    def problem(**arguments: Any) -> str:
        given: dict[str, Any] = {"data": "rows.jsonl"} | arguments
        with pytest.raises(ConfigError) as raised:
            RewardTrainer(given.pop("model", "gpt2"), **given)
        return str(raised.value)

    assert problem(data=None) == "data: missing in RewardTrainer(...)"
    assert problem(model=from_yaml) == (
        "RewardTrainer(model): got a SFTConfig; give a RewardModelConfig, a hub name or folder, or the section `model`"
    )
    assert problem(training={"epoch": 1}) == "training: unknown option 'epoch' (did you mean epochs?)"
    assert "unknown option 'gamma'" in problem(training=TrainingConfig(gamma=0.9))
    wrong = problem(training={"epochs": 0})
    assert wrong == "reward.epochs: 0 in RewardTrainer(training=...) as epochs should be at least 1"


def test_a_result_reads_as_text_and_as_a_table(tmp_path: Path) -> None:
    history = [{"loss/sft": 2.0}, {"loss/sft": 1.0, "seconds/total": 0.5}]
    before, after = {"eval/loss": 2.5, "eval/token_accuracy": 0.25}, {"eval/loss": 1.25, "eval/token_accuracy": 0.5}
    result = StageResult(tmp_path / "policy", tmp_path, steps=9, history=history, before=before, after=after)
    table = result.to_pandas()
    assert table.index.tolist() == [8, 9]
    assert table["loss/sft"].tolist() == [2.0, 1.0]
    assert table["seconds/total"].isna().tolist() == [True, False]
    lines = [line.split() for line in result.summary().splitlines()]
    assert lines[0] == ["9", "steps,", "the", "full", "length"]
    assert ["loss", "2.5", "1.25"] in lines
    assert ["token", "accuracy", "0.25", "0.5"] in lines
