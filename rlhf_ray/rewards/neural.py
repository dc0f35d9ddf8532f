"""Neural rewards: a Hugging Face sequence-classification model reads prompt + response and gives one score.

Two kinds. A model that our reward trainer wrote (its folder holds `rlhf_ray_reward.json` with the mean and std of its
scores) shares the policy's tokenizer: it reads the sampled token ids themselves, its score is that of the last token,
and it is normalised. Any other model gets the text, tokenised by its own tokenizer, and its own pooling.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.config.rewards import NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import check_model, explain_hub_error
from rlhf_ray.models.batching import split_by_tokens
from rlhf_ray.models.load import resolve_dtype

NORMALISER_FILE = "rlhf_ray_reward.json"


class NeuralReward:
    """A loaded model with its tokenizer. Raises ConfigError when it cannot be a reward model."""

    def __init__(self, section: NeuralRewardSection, device: torch.device | str = "cpu") -> None:
        self._name = section.model
        self._label = section.label_index
        self._tokens_per_batch = section.tokens_per_batch
        self._device = torch.device(device)
        model, self._tokenizer = _load(section, resolve_dtype(section.dtype, self._device))
        self._model = model.to(self._device).eval()
        self._reads_tokens = (Path(section.model) / NORMALISER_FILE).is_file()
        self._mean, self._std = _read_normaliser(Path(section.model)) if self._reads_tokens else (0.0, 1.0)
        self._max_tokens = _context(self._model, self._tokenizer.model_max_length, section.max_tokens)
        if self._reads_tokens:
            self._model.score.float()  # a bfloat16 head would round scores to three digits
        if self._model.config.pad_token_id is None:  # models that pool the last token refuse batches without one
            tokenizer = self._tokenizer
            pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            self._model.config.pad_token_id = pad

    def score(self, table: pa.Table) -> list[float]:
        """Score each row of a `SAMPLES` table, in its order. A score may be non-finite: the caller judges that.

        Batches depend on the table alone: at most `tokens_per_batch` padded tokens each, of samples of similar length.
        """
        sequences = self._policy_tokens(table) if self._reads_tokens else self._own_tokens(table)
        scores = [math.nan] * len(sequences)  # stays NaN for an empty sequence
        filled = [row for row, sequence in enumerate(sequences) if len(sequence)]
        for batch in split_by_tokens([len(sequences[row]) for row in filled], self._tokens_per_batch):
            rows = [filled[i] for i in batch]
            for row, score in zip(rows, self._forward([sequences[row] for row in rows]), strict=True):
                scores[row] = (score - self._mean) / self._std
        return scores

    def _policy_tokens(self, table: pa.Table) -> list[np.ndarray]:
        columns = zip(
            table.column("prompt_tokens").to_pylist(), table.column("response_tokens").to_pylist(), strict=True
        )
        sequences = [np.array((prompt + response)[-self._max_tokens :], dtype=np.int64) for prompt, response in columns]
        vocabulary = self._model.get_input_embeddings().num_embeddings
        if (largest := max((int(s.max()) for s in sequences if len(s)), default=0)) >= vocabulary:
            raise ConfigError(
                f"Reward model {self._name} knows {vocabulary} tokens, but the policy sampled token {largest}: it was "
                "trained with another tokenizer. Train it from the policy's own base model."
            )
        return sequences

    def _own_tokens(self, table: pa.Table) -> list[np.ndarray]:
        """The text in the model's tokenizer; a text too long loses its start, so that the response is read."""
        columns = zip(table.column("prompt").to_pylist(), table.column("response").to_pylist(), strict=True)
        texts = [prompt + response for prompt, response in columns]
        self._tokenizer.truncation_side = "left"
        encoded = self._tokenizer(texts, truncation=True, max_length=self._max_tokens)["input_ids"] if texts else []
        bos = self._tokenizer.bos_token_id
        # A chat template already wrote the BOS that the tokenizer adds again.
        return [
            np.array(ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids, dtype=np.int64) for ids in encoded
        ]

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[np.ndarray]) -> list[float]:
        """One pass over right-padded [batch, longest] tokens."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self._device)
        padded = np.full(
            (len(sequences), max(map(len, sequences))), self._model.config.pad_token_id or 0, dtype=np.int64
        )
        for row, sequence in enumerate(sequences):
            padded[row, : len(sequence)] = sequence
        input_ids = torch.from_numpy(padded).to(self._device)
        scores = self._score_last(input_ids, lengths) if self._reads_tokens else self._score_pooled(input_ids, lengths)
        return [float(score) for score in scores.float().cpu()]

    def _score_last(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """As in training: the head on the last real token's state. A causal model needs no mask for padding behind it.

        The model's own pooling looks for the padding token instead, and is off by one where that is also the end token.
        """
        hidden = self._model.base_model(input_ids=input_ids, use_cache=False)[0]
        last = hidden[torch.arange(len(lengths), device=self._device), lengths - 1]
        return self._model.score(last.float())[:, 0]

    def _score_pooled(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(input_ids.shape[1], device=self._device) < lengths[:, None]).long()
        return self._model(input_ids=input_ids, attention_mask=mask).logits[:, self._label]


def _load(section: NeuralRewardSection, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    source = check_model(section.model, section.revision)
    options = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, **options, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise explain_hub_error(section.model, error) from error
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"Reward model {section.model} has no trained classification head: {', '.join(missing)} would be random "
            "numbers. Name a sequence-classification (reward) model, or train one: rlhf-ray reward."
        )
    if section.label_index >= model.config.num_labels:
        raise ConfigError(
            f"Reward model {section.model} has {model.config.num_labels} outputs, so label_index {section.label_index} "
            f"does not exist. Its labels: {model.config.id2label}."
        )
    return model, tokenizer


def _read_normaliser(folder: Path) -> tuple[float, float]:
    path = folder / NORMALISER_FILE
    try:
        content = json.loads(path.read_text())
        mean, std = float(content["mean"]), float(content["std"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} should hold the numbers `mean` and `std` of the model's scores: {error!r}."
        ) from None
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ConfigError(f"{path}: mean must be finite and std finite and above 0, but they are {mean} and {std}.")
    return mean, std


def _context(model: Any, tokenizer_limit: int, configured: int | None) -> int:
    """Longest sequence in tokens: what the model has positions for, less if configured."""
    limits = [tokenizer_limit]
    if (positions := getattr(model.config, "max_position_embeddings", None)) is not None:
        limits.append(positions)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    limits += [  # RoBERTa counts positions from the padding index on
        table.num_embeddings - table.padding_idx - 1
        for table in tables
        if table.num_embeddings == positions and table.padding_idx is not None
    ]
    limits.append(configured or min(limits))
    return min(limits)
