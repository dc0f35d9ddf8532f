"""Finding what is to be exported, and real token sequences to compare it on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from learner_world import demonstrations, preferences, reward_config, sft_config
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.export.sequences import choose_sequences, given_sequences
from rlhf_ray.export.source import Source
from rlhf_ray.learner.rank import LearnerRank

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def run(group, model, tmp_path_factory):
    """A run's folder with a policy trained by LoRA, and its adapter."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"model: {{name: {model}}}\nsft: {{}}\n")
    rank = LearnerRank(sft_config(model, model={"name": model, "lora": {"r": 4}}), group, 10)
    objective = rank.sft(demonstrations(0, 6), None)
    for _ in range(2):
        objective.step(np.arange(6))
    rank.export(folder / "policy")
    return folder


def test_a_run_is_its_policy_and_its_adapter(run):
    source = Source.find(run)
    assert (source.model, source.run, source.kind) == (str(run / "policy"), run, "policy")
    assert source.adapter == run / "policy" / "adapter"
    assert not source.is_adapter


def test_a_folder_of_a_run_knows_its_run(run):
    assert Source.find(run / "policy").run == run
    assert Source.find(run / "policy" / "adapter").run == run


def test_a_model_of_no_run(model):
    source = Source.find(model)
    assert (source.run, source.adapter) == (None, None)


def test_an_adapter_alone_is_merged_to_the_bits_of_the_learner(run):
    source = Source.find(run / "policy" / "adapter")
    assert source.is_adapter
    merged, saved = source.load().state_dict(), AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    assert merged.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in merged.items())


def test_a_reward_models_adapter_brings_its_head(group, model, tmp_path):
    rank = LearnerRank(reward_config(model, model={"name": model, "lora": {"r": 4}}), group, 10)
    rank.pairwise(preferences(0, 4), None).step(np.arange(4))
    rank.export(tmp_path)
    source = Source.find(tmp_path / "adapter")
    assert source.kind == "reward model"
    merged = source.load()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in merged.state_dict().items())
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    plain_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    assert torch.equal(plain_peft.score.weight, merged.score.weight)


def test_a_run_that_saved_nothing_yet_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("sft: {}\n")
    with pytest.raises(ConfigError, match="has saved no model yet"):
        Source.find(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Source.find(tmp_path)


# -- sequences ---------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer of one number per word."""

    def __call__(self, text):
        return {"input_ids": [len(word) for word in text.split()]}


def test_a_runs_own_rollouts_come_first(tmp_path):
    (tmp_path / "rollouts").mkdir()
    for number in (1, 2):
        rows = [{"prompt_tokens": [number, 4], "response_tokens": list(range(200))}] * 40
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rollouts" / f"iteration-{number:06d}.parquet")
    found = choose_sequences(tmp_path, Words(), 64)
    assert "iteration-000002" in found.origin
    assert [sequence[:3].tolist() for sequence in found.tokens[:2]] == [[2, 4, 0]] * 2
    assert {len(sequence) for sequence in found.tokens} == {64}, "no longer than the model's context"
    assert len(found.tokens) < 40


def test_without_rollouts_text_of_different_lengths():
    found = choose_sequences(None, Words(), None)
    lengths = {len(sequence) for sequence in found.tokens}
    assert len(found.tokens) > 8
    assert len(lengths) > 4
    assert max(lengths) <= 128


def test_a_tokenizer_that_swallows_text_is_named():
    with pytest.raises(DataError, match="is its tokenizer whole"):
        choose_sequences(None, lambda text: {"input_ids": [0]}, None)


@pytest.mark.parametrize("sequences", [[], [[1, 2], [3]]])
def test_sequences_too_short_to_say_anything_are_refused(sequences):
    with pytest.raises(ConfigError, match="two token ids"):
        given_sequences(sequences)
