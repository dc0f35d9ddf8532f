"""The function that graph formats hold: token ids and mask in, logits or scores out, float32, any batch and time.

No key-value cache: a graph answers for whole sequences, as scoring and classifying do. Generating token by token with
one is quadratic in length; serve the safetensors with vLLM for that.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from rlhf_ray.errors import ConfigError
from rlhf_ray.export.source import Kind

INPUTS = ("input_ids", "attention_mask")
OUTPUT: dict[Kind, str] = {"policy": "logits", "reward model": "scores"}


class GraphModule(nn.Module):
    """(input_ids, attention_mask), both int64 [batch, time] -> logits [batch, time, vocabulary] or scores [batch].

    Padding (mask 0) may stand on either side; what is said at padded positions means nothing. A reward model's score is
    read at the last real token, as in training.
    """

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        self.positioned = "position_ids" in inspect.signature(model.forward).parameters  # ALiBi models know none

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if self.positioned:
            inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if self.kind == "policy":
            return self.model(**inputs).logits.float()
        states = self.model.base_model(**inputs)[0]
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * columns).argmax(-1)
        state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
        return self.model.score(state).float().sum(-1)


def example() -> tuple[Tensor, Tensor]:
    """Inputs to capture with: two sequences, one padded, so that the graph keeps its mask."""
    ids = torch.zeros(2, 7, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def dynamic_shapes(context: int | None) -> dict[str, dict[int, Dim]]:
    """Both axes of both inputs, under readable names; `context` is the longest sequence that the model takes."""
    batch, time = Dim("batch"), Dim("time", max=context)
    return {name: {0: batch, 1: time} for name in INPUTS}


def capture(model: PreTrainedModel, kind: Kind) -> ExportedProgram:
    """The model as a torch.export program. Raises ConfigError for an architecture that cannot be captured."""
    shapes = dynamic_shapes(getattr(model.config, "max_position_embeddings", None))
    try:
        with torch.no_grad():
            return torch.export.export(GraphModule(model, kind).eval(), example(), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises dozens of kinds for what it cannot follow
        raise ConfigError(
            f"torch.export cannot capture {type(model).__name__}: {str(error).strip().splitlines()[0]}\n"
            "Its control flow depends on data or on shapes. Export it as safetensors (or adapter) instead."
        ) from error
