"""The frozen reference: log-probs of the responses under the model that the policy must not leave too far behind."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray import faults, schema
from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.config.common import ModelSection
from rlhf_ray.models.batching import TokenBatch, split_by_tokens
from rlhf_ray.models.load import default_device, load_causal_lm, resolve_dtype
from rlhf_ray.models.networks import PolicyNetwork


class Reference:
    """Answers `schema.SAMPLES` tables with `schema.REFERENCE` tables, row for row."""

    def __init__(self, section: ModelSection, dtype: str, tokens_per_batch: int, temperature: float) -> None:
        self._section, self._dtype = section, dtype
        self._tokens_per_batch, self._temperature = tokens_per_batch, temperature
        self._thread = OwnedThread()
        self._device = default_device()
        self._network: PolicyNetwork | None = None

    def ready(self) -> dict[str, Any]:
        """Load the model. Raises ConfigError when it cannot be loaded."""
        network = self._thread.call("loading the model", self._loaded)
        return {"dtype": str(next(network.parameters()).dtype).removeprefix("torch.")}

    def _loaded(self) -> PolicyNetwork:
        """The network, loaded when it is first asked for: an actor that replaces a lost one is sent samples at once."""
        if self._network is None:
            faults.reach("load")
            dtype = resolve_dtype(self._dtype, self._device)  # type: ignore[arg-type]
            self._network = PolicyNetwork(load_causal_lm(self._section, dtype)).to(self._device).eval()
        return self._network

    def health(self) -> dict[str, Any]:
        return self._thread.health()

    def logprobs(self, samples: pa.Table, temperature: float | None = None) -> tuple[pa.Table, int]:
        """The reference's log-probs at a temperature (default: its own), and the number of rows."""
        return self._thread.call("computing log-probs", self._logprobs, samples, temperature or self._temperature)

    @torch.inference_mode()
    def _logprobs(self, samples: pa.Table, temperature: float) -> tuple[pa.Table, int]:
        prompts, responses = (
            [row.values.to_numpy() for row in samples[n]] for n in ("prompt_tokens", "response_tokens")
        )
        sequences = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
        network = self._loaded()
        answers: list[np.ndarray] = [np.zeros(0, np.float32)] * len(sequences)
        for group in split_by_tokens([len(s) for s in sequences], self._tokens_per_batch):
            batch = TokenBatch.build([sequences[i] for i in group], [len(prompts[i]) for i in group], self._device)
            padded = batch.pad(network(batch, temperature).logprobs)
            for index, values in zip(group, batch.unpad(padded), strict=True):
                answers[index] = values
        faults.reach("logprobs")
        columns = [samples["prompt_id"], samples["sample_index"], pa.array(answers, pa.list_(pa.float32()))]
        return pa.table(columns, schema=schema.REFERENCE), len(answers)
