"""How each form is used: the code that a model card shows."""

from collections.abc import Mapping

from rlhf_ray.export.graph import OUTPUT
from rlhf_ray.export.source import Kind

_HUGGING_FACE: dict[Kind, str] = {
    "policy": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
    "reward model": """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
}
_ADAPTER: dict[Kind, str] = {
    "policy": """\
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")  # on the base that it was trained on""",
    "reward model": """\
from peft import AutoPeftModelForSequenceClassification

model = AutoPeftModelForSequenceClassification.from_pretrained("{folder}", num_labels=1)  # on its base""",
}
_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
{output} = session.run(None, {{"input_ids": ids, "attention_mask": mask}})[0]  # both int64 [batch, time]"""
_TORCH = """\
import torch

model = {call}
{output} = model(input_ids, attention_mask)  # both int64 [batch, time]"""
_CALLS = {
    "torch-export": 'torch.export.load("{folder}/model.pt2").module()',
    "torchscript": 'torch.jit.load("{folder}/model.pt")',
}


def usage(kind: Kind, folders: Mapping[str, str]) -> str:
    """The section on use. `folders`: form -> where it lies, seen from the card."""
    parts = ["## Use\n"]
    parts += [f"{name}:\n\n```python\n{_snippet(name, kind, folder)}\n```\n" for name, folder in folders.items()]
    if kind == "reward model":
        parts.append(
            "A score is read at the last token of prompt + response; `rlhf_ray_reward.json`, where present, holds the "
            "mean and standard deviation of the scores on the training pairs. In rlhf-ray: "
            "`rewards.quality={type: neural, model: <folder of the safetensors>}`.\n"
        )
    return "\n".join(parts)


def _snippet(name: str, kind: Kind, folder: str) -> str:
    if name in _CALLS:
        return _TORCH.format(call=_CALLS[name].format(folder=folder), output=OUTPUT[kind])
    text = {"safetensors": _HUGGING_FACE[kind], "adapter": _ADAPTER[kind]}.get(name, _ONNX)
    return text.format(folder=folder, output=OUTPUT[kind])
