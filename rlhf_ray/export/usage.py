"""How each form is used: the code that a model card shows, which `verify` ran in substance."""

from collections.abc import Mapping

from rlhf_ray.export.report import Written
from rlhf_ray.export.source import Kind, Source

_SNIPPETS: dict[tuple[str, Kind], str] = {
    ("safetensors", "policy"): """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("safetensors")
tokenizer = AutoTokenizer.from_pretrained("safetensors")""",
    ("safetensors", "reward model"): """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("safetensors")
tokenizer = AutoTokenizer.from_pretrained("safetensors")""",
    ("adapter", "policy"): """\
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("adapter")""",
    ("adapter", "reward model"): """\
from peft import AutoPeftModelForSequenceClassification

model = AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=1)""",
}
_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("{name}/model.onnx")
{output} = session.run(None, {{"input_ids": ids, "attention_mask": mask}})[0]  # int64 [batch, time] both"""
_TORCH = """\
import torch

model = {call}
{output} = model(input_ids, attention_mask)  # int64 [batch, time] both"""
_CALLS = {
    "torch-export": 'torch.export.load("torch-export/model.pt2").module()',
    "torchscript": 'torch.jit.load("torchscript/model.pt")',
}
_SHAPES: dict[Kind, str] = {"policy": "logits", "reward model": "scores"}


def usage(source: Source, formats: Mapping[str, Written]) -> str:
    """The section on use, for these forms."""
    parts = ["## Use\n"]
    parts += [f"{name}:\n\n```python\n{_snippet(name, source.kind)}\n```\n" for name in formats]
    if source.kind == "reward model":
        parts.append(
            "A score is read at the last token of prompt + response; `rlhf_ray_reward.json`, where present, holds the "
            "mean and standard deviation of the scores on the training pairs. In rlhf-ray: "
            "`rewards.quality={type: neural, model: <this folder>}`.\n"
        )
    return "\n".join(parts)


def _snippet(name: str, kind: Kind) -> str:
    if name in ("safetensors", "adapter"):
        return _SNIPPETS[name, kind]
    if name in _CALLS:
        return _TORCH.format(call=_CALLS[name], output=_SHAPES[kind])
    return _ONNX.format(name=name, output=_SHAPES[kind])
