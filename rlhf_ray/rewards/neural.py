"""Neural rewards: a Hugging Face sequence-classification model reads prompt + response and gives one score.

Two kinds. A model that our reward trainer wrote (its folder holds `rlhf_ray_reward.json` with the mean and std of its
scores) shares the policy's tokenizer: it reads the sampled token ids themselves, its score is that of the last token,
and it is normalised. Any other model gets the text, as `template` says, tokenised by its own tokenizer, and its own
pooling.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.config.rewards import NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.batching import split_by_tokens
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.rewards.answer import outcome_of_exception
from rlhf_ray.rewards.loading import choose_device, context_length, load_model
from rlhf_ray.rewards.outcome import CallFailure, Outcome
from rlhf_ray.rewards.templates import Encoded, SampleReader


class NeuralReward:
    """A loaded model with its tokenizer. Raises ConfigError when it cannot be a reward model."""

    def __init__(self, section: NeuralRewardSection) -> None:
        self.section, self.device = section, choose_device(section)
        self._model, tokenizer = load_model(section, self.device)
        self._stats = RewardStats.load(section.model)
        self._reads_tokens = self._stats is not None and section.template is None
        self._max_tokens = context_length(self._model, tokenizer.model_max_length, section.max_tokens)
        self._reader = SampleReader(section.template, tokenizer, self._max_tokens, section.model)
        #: BERT and its kin embed which of two texts a token belongs to; others must not be told.
        self._typed = section.template == "pair" and getattr(self._model.config, "type_vocab_size", 0) > 1
        if self._stats is not None:
            self._model.score.float()  # a bfloat16 head would round scores to three digits
        if self._model.config.pad_token_id is None:  # models that pool the last token refuse batches without one
            pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            self._model.config.pad_token_id = pad

    def score(self, table: pa.Table) -> list[Outcome]:
        """Score each row of a `SAMPLES` table, in its order.

        Batches depend on the table alone: at most `tokens_per_batch` padded tokens each, of samples of similar length.
        A batch that takes longer than `timeout_s` fails its samples. Raises ConfigError for another tokenizer's tokens.
        """
        read = self._policy_tokens(table) if self._reads_tokens else self._reader.read(table)
        outcomes = [_unreadable(sample) for sample in read]
        encoded = [(row, sample) for row, sample in enumerate(read) if isinstance(sample, Encoded) and len(sample.ids)]
        for batch in split_by_tokens([len(sample.ids) for _, sample in encoded], self.section.tokens_per_batch):
            results = self._score_batch([encoded[i][1] for i in batch])
            for i, outcome in zip(batch, results, strict=True):
                outcomes[encoded[i][0]] = outcome
        return outcomes

    def _policy_tokens(self, table: pa.Table) -> list[Encoded | CallFailure]:
        prompts, responses = table.column("prompt_tokens").to_pylist(), table.column("response_tokens").to_pylist()
        sequences = [
            np.array((prompt + response)[-self._max_tokens :], dtype=np.int64)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        vocabulary = self._model.get_input_embeddings().num_embeddings
        if (largest := max((int(s.max()) for s in sequences if len(s)), default=0)) >= vocabulary:
            raise ConfigError(
                f"Reward model {self.section.model} knows {vocabulary} tokens, but the policy sampled token {largest}: "
                "it was trained with another tokenizer. Train it from the policy's own base model."
            )
        return [Encoded(sequence) for sequence in sequences]

    def _score_batch(self, batch: Sequence[Encoded]) -> list[Outcome]:
        """One forward pass; where it raises, one per sample, so that only the culprit fails."""
        started = time.monotonic()
        try:
            scores = self._forward(batch)
        except Exception as error:
            if len(batch) > 1:
                return [outcome for sample in batch for outcome in self._score_batch([sample])]
            return [outcome_of_exception(error, time.monotonic() - started)]
        seconds = time.monotonic() - started
        if seconds > self.section.timeout_s:
            message = (
                f"returned after {seconds:.3g} s with a batch of {len(batch)}, past its timeout_s of "
                f"{self.section.timeout_s:g}; raise it, or lower tokens_per_batch"
            )
            return [Outcome(failure=CallFailure("timeout", message), seconds=seconds) for _ in batch]
        return [self._outcome(score, seconds / len(batch)) for score in scores]

    def _outcome(self, score: float, seconds: float) -> Outcome:
        if not math.isfinite(score):
            message = f"scored {score}; the model overflows or is damaged (try dtype: float32)"
            return Outcome(failure=CallFailure("not_finite", message), seconds=seconds)
        return Outcome(value=self._stats.normalise(score) if self._stats else score, seconds=seconds)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Encoded]) -> list[float]:
        """One pass over right-padded [batch, longest] tokens."""
        lengths = torch.tensor([len(sample.ids) for sample in batch], device=self.device)
        input_ids = self._padded([sample.ids for sample in batch], self._model.config.pad_token_id or 0)
        if self._stats is not None:
            scores = self._score_last(input_ids, lengths)
        else:
            types = [np.zeros_like(s.ids) if s.types is None else s.types for s in batch] if self._typed else None
            scores = self._score_pooled(input_ids, lengths, None if types is None else self._padded(types, 0))
        return scores.float().cpu().tolist()

    def _padded(self, rows: Sequence[np.ndarray], filler: int) -> Tensor:
        padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(padded).to(self.device)

    def _score_last(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """As in training: the head on the last real token's state. A causal model needs no mask for padding behind it.

        The model's own pooling looks for the padding token instead, and is off by one where that is also the end token.
        """
        hidden = self._model.base_model(input_ids=input_ids, use_cache=False)[0]
        last = hidden[torch.arange(len(lengths), device=self.device), lengths - 1]
        return self._model.score(last.float())[:, 0]

    def _score_pooled(self, input_ids: Tensor, lengths: Tensor, types: Tensor | None) -> Tensor:
        mask = (torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]).long()
        typed = {} if types is None else {"token_type_ids": types}
        logits = self._model(input_ids=input_ids, attention_mask=mask, **typed).logits.float()
        if self.section.activation == "softmax":
            logits = logits.softmax(-1)
        elif self.section.activation == "sigmoid":
            logits = logits.sigmoid()
        return logits[:, self.section.label_index]


def _unreadable(sample: Encoded | CallFailure) -> Outcome:
    """The outcome of a sample that no pass will score; of the others until one has."""
    if isinstance(sample, CallFailure):
        return Outcome(failure=sample)
    return Outcome(failure=CallFailure("raised", "cannot score an empty text"))
