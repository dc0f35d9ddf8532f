"""Score heads: one linear layer, as transformers has it, or a hidden layer before it (`reward.head_hidden`).

A model with a hidden layer says so in its config.json (`score_hidden`). Its `score.weight` is that layer's, so that
transformers' own class, which expects one row, refuses it instead of scoring with random numbers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rlhf_ray.errors import ConfigError

#: Key of a model's configuration: neurons of its head's hidden layer.
WIDTH_KEY = "score_hidden"


class HiddenHead(nn.Linear):
    """[..., hidden_size] states to [..., 1] scores: out(tanh(W x))."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__(hidden_size, width, bias=False)
        self.out = nn.Linear(width, 1, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.out(torch.tanh(super().forward(states)))
        return scores


def head_width(config: PretrainedConfig) -> int | None:
    """Neurons of the head's hidden layer; None without one."""
    return getattr(config, WIDTH_KEY, None)


def scalar_model_factory(config: PretrainedConfig) -> Any:
    """What has the `from_pretrained` of a sequence classifier with this configuration.

    Raises ConfigError for a hidden layer on an architecture that transformers itself does not know.
    """
    width = head_width(config)
    if width is None:
        return AutoModelForSequenceClassification
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"{config.name_or_path}: a {config.model_type} model can have no score head with a hidden layer"
        )
    base, neurons = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], int(width)

    class WithHiddenHead(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.score = HiddenHead(self.score.in_features, neurons)  # type: ignore[has-type]

    WithHiddenHead.__name__ = base.__name__  # which is what a saved config.json calls the architecture
    return WithHiddenHead


def last_layer(score: nn.Linear) -> nn.Linear:
    """The layer of a head that gives the scores."""
    return score.out if isinstance(score, HiddenHead) else score


def small_start(score: nn.Linear) -> None:
    """Scores of a new head start near zero (Stiennon et al. 2020: std 1 / sqrt(inputs + 1))."""
    for layer in dict.fromkeys((score, last_layer(score))):
        nn.init.normal_(layer.weight, std=(layer.in_features + 1) ** -0.5)


def drop_inputs(score: nn.Linear, dropout: float) -> None:
    """Dropout on the states that a head reads, in training."""
    score.register_forward_pre_hook(lambda module, inputs: F.dropout(inputs[0], dropout, module.training))
