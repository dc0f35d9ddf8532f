"""The proof of loading, on real engines: every family syncs right, and no single lost tensor goes unseen.

All families share one process (a second engine there costs seconds, not the half minute of a new one): the `Lab` actor
holds a learner's model and a generator side by side and moves the weights between them as a sync does.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from tiny_models import FAMILIES, load, prompt_table, response_logprobs, save_tiny, train
from transformers import PreTrainedModel

from rlhf_ray.actors.generator import Generator, generator_environment
from rlhf_ray.config.ppo import GenerationSection, SyncSection
from rlhf_ray.weights.audit import LogprobGap, compare_receipts
from rlhf_ray.weights.bucket import SentReceipt, stream_weights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

SECTION = GenerationSection(max_new_tokens=8, max_context_tokens=64, cpu_kv_cache_gib=0.0625, max_concurrent_samples=16)
TINY_STEP = 1e-6  # a learning rate at which log-probs do not show a stale tensor


class Lab:
    """A learner's model and a generator in one process; `open` takes the next family."""

    def open(self, path: str) -> None:
        self.model: PreTrainedModel = load(path)
        self.generator = Generator(path, SECTION, SyncSection(), "float32", seed=0)
        self.generator.ready()
        self.version = 0

    def three_updates(self) -> list[float]:
        """The largest gap between generator and learner after each of three real updates."""
        gaps = []
        for seed in range(3):
            train(self.model, steps=1, learning_rate=1e-2, seed=seed)
            assert self.sync()["problems"] == []
            gaps.append(self.gap().max)
        return gaps

    def tensors(self) -> list[str]:
        return [name for name, _ in self.model.named_parameters()]

    def sync(self, skip: str | None = None, fault: dict[str, str] | None = None) -> dict[str, Any]:
        """One update, through pickled buckets; `skip` loses a tensor at the sender, `fault` at the receiver."""
        self.version += 1
        self.generator.init_transfer({"fault": fault or {}})
        self.generator.begin_update(self.version, attempt=0)
        named = [(name, tensor) for name, tensor in self.model.named_parameters() if name != skip]
        settings: dict[str, Any] = {"version": self.version, "attempt": 0, "dtype": torch.float32}
        for item in stream_weights(named, **settings, bucket_bytes=20_000):
            self.generator.load_bucket(pickle.loads(pickle.dumps(item)))
        assert isinstance(item, SentReceipt)
        receipt = self.generator.finish_update()
        receipt["problems"] = compare_receipts(item.digests, receipt["digests"]) + receipt["faults"]
        return receipt

    def gap(self) -> LogprobGap:
        gaps: list[torch.Tensor] = []
        for table in list(self.generator.generate(prompt_table(4), iteration=self.version, samples_per_prompt=2))[::2]:
            for row in table.to_pylist():
                assert row["policy_version"] == self.version
                own = response_logprobs(self.model, row["prompt_tokens"], row["response_tokens"])
                gaps.append(torch.tensor(row["response_logprobs"]) - own)
        difference = torch.cat(gaps).numpy()
        return LogprobGap.of(difference, 0 * difference)

    def lose_each_tensor(self, where: str) -> dict[str, dict[str, Any]]:
        """For each tensor: a step too small for log-probs, a sync that loses the tensor there, and what was said."""
        receipts = {}
        for name in self.tensors():
            train(self.model, steps=1, learning_rate=TINY_STEP)
            receipts[name] = self.sync(skip=name) if where == "sender" else self.sync(fault={where: name})
        return receipts

    def sync_with_a_stale_copy(self) -> list[str]:
        """What is said of a sync after which one layer still computes with its old prepacked weights."""
        (model,) = self.generator._engine.call(lambda engine: engine.collective_rpc(_model_of))
        layer = next(module for module in model.modules() if hasattr(module, "cpu_linear"))
        method, old = type(layer.quant_method), layer.cpu_linear
        process = method.process_weights_after_loading

        def process_and_keep(self: Any, processed: torch.nn.Module) -> None:
            process(self, processed)
            if processed is layer:
                processed.cpu_linear = old

        method.process_weights_after_loading = process_and_keep
        try:
            return self.sync()["problems"]
        finally:
            method.process_weights_after_loading = process


def _model_of(worker: Any) -> torch.nn.Module:
    return worker.weight_transfer_engine.model


@pytest.fixture(scope="module")
def lab(ray_local: None) -> Iterator[Any]:
    environment = generator_environment(SECTION, threads=2) | {"PYTHONPATH": str(Path(__file__).parent)}
    actor = ray.remote(Lab).options(num_cpus=0.1, runtime_env={"env_vars": environment}).remote()
    yield actor
    ray.kill(actor)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_syncs_right_and_no_lost_tensor_goes_unseen(lab: Any, family: str, tmp_path: Path) -> None:
    ray.get(lab.open.remote(save_tiny(family, tmp_path)))
    gaps = ray.get(lab.three_updates.remote())
    assert max(gaps) < 1e-4, gaps

    tensors = ray.get(lab.tensors.remote())
    for where in ("sender", "skip_tensor", "ignore_tensor"):
        receipts = ray.get(lab.lose_each_tensor.remote(where))
        assert list(receipts) == tensors
        assert [name for name in tensors if not receipts[name]["faults"]] == [], (
            f"unseen by the engine, lost at {where}"
        )
        if where == "skip_tensor":
            unnamed = [name for name in tensors if not any(name in text for text in receipts[name]["problems"])]
            assert unnamed == [], "the comparison with the sender names the tensor"

    assert ray.get(lab.three_updates.remote())[-1] < 1e-4, "a right sync repairs the engine"


def test_a_stale_prepacked_copy_is_seen(lab: Any, tmp_path: Path) -> None:
    problems = ray.get(lab.sync_with_a_stale_copy.remote())
    assert len(problems) == 1
    assert "computes with a stale copy" in problems[0]
