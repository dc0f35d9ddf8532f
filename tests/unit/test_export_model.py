"""`export_model` on forms that need no graph: whole or not at all, sharded, exact; refusals before any loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from learner_world import VOCABULARY, save_tiny_model
from transformers import AutoModelForCausalLM

import rlhf_ray
from rlhf_ray.cli.main import main
from rlhf_ray.errors import AuditError, ConfigError
from rlhf_ray.export import FORMATS, api
from rlhf_ray.export.formats import make_formats
from rlhf_ray.export.hugging_face import Safetensors

pytestmark = pytest.mark.unit

SEQUENCES = [np.random.default_rng(i).integers(3, VOCABULARY, 4 + i).tolist() for i in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_safetensors_are_sharded_and_bit_for_bit_the_source(model, tmp_path, capsys):
    out = tmp_path / "out"
    report = rlhf_ray.export_model(model, output_path=out, max_shard_size="100KB", sequences=SEQUENCES)
    assert report.formats["safetensors"].gap.largest == 0.0
    assert len(list((out / "safetensors").glob("model-*.safetensors"))) > 1
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (out / "safetensors", model))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    stored = json.loads((out / "export.json").read_text())
    assert stored["formats"]["safetensors"]["gap"] == {"largest": 0.0, "mean": 0.0, "shift": 0.0, "values": 25}
    assert (out / "README.md").is_file()
    assert 'from_pretrained(".")' in (out / "safetensors" / "README.md").read_text()
    assert "5 sequences, 30 tokens" in capsys.readouterr().out


def test_a_model_saved_in_bfloat16_stays_in_it(model, tmp_path):
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").write_bytes((Path(model) / "tokenizer.json").read_bytes())
    report = rlhf_ray.export_model(tmp_path / "half", output_path=tmp_path / "out", sequences=SEQUENCES)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "safetensors", dtype="auto")
    assert saved.dtype == torch.bfloat16
    assert report.formats["safetensors"].gap.largest == 0.0


class Lossy(Safetensors):
    """Loses the last bits of one tensor on the way to disk."""

    def write(self, loaded, folder):
        super().write(loaded, folder)
        damaged = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            damaged.lm_head.weight.mul_(1 + 1e-6)
        damaged.save_pretrained(folder)


def test_an_export_that_is_not_its_source_leaves_nothing_behind(model, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "make_formats", lambda names: {"safetensors": Lossy()})
    with pytest.raises(AuditError, match=r"export safetensors: the exported model is not its source"):
        rlhf_ray.export_model(model, output_path=tmp_path / "out", sequences=SEQUENCES)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_written_over(model, tmp_path):
    (tmp_path / "kept").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        rlhf_ray.export_model(model, output_path=tmp_path)


def test_an_adapter_needs_one(model, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no adapter .* export safetensors instead"):
        rlhf_ray.export_model(model, ["safetensors", "adapter"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("onx", "Did you mean `onnx`"), ("tensorrt", r"built from ONNX on the GPU .* docs/export\.md"), ("gguf", "onnx")],
)
def test_unknown_formats_are_told_what_there_is(name, message):
    with pytest.raises(ConfigError, match=message):
        make_formats([name])


def test_every_format_has_its_class():
    assert list(make_formats(list(FORMATS))) == list(FORMATS)


def test_quantisation_is_another_word_for_a_format(model, tmp_path):
    with pytest.raises(ConfigError, match="safetensors cannot be quantised to int8; onnx can"):
        rlhf_ray.export_model(model, output_path=tmp_path / "out", quantization="int8")


def test_a_format_whose_packages_are_missing_says_how_to_get_them(model, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_ray.export.formats.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx, onnxscript, onnxruntime: pip install 'rlhf-ray\[export\]'"):
        rlhf_ray.export_model(model, "onnx", tmp_path / "out")


def test_the_command_says_what_is_wrong(tmp_path):
    result = CliRunner().invoke(main, ["export", str(tmp_path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no config.json" in result.output
