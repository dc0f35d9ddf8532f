"""Adapter-only syncs on real engines: each family samples from the learner's adapter, and nothing lost goes unseen.

A whole run that syncs adapters is in test_recipe_runs.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from peft.tuners.lora import LoraLayer
from tiny_models import load, prompt_table, response_logprobs, save_tiny, train
from transformers import PreTrainedModel

from rlhf_ray.actors.generator import Generator, generator_environment
from rlhf_ray.config.common import LoraSection
from rlhf_ray.config.ppo import GenerationSection, SyncSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.lora import adapter_tensors, add_lora
from rlhf_ray.weights.audit import compare_receipts
from rlhf_ray.weights.bucket import SentReceipt, stream_weights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

SECTION = GenerationSection(max_new_tokens=8, max_context_tokens=64, cpu_kv_cache_gib=0.0625, max_concurrent_samples=16)
LORA = LoraSection(r=4, alpha=6.0)  # no power of two: the scaling shows
FAMILIES = ["llama_tied", "llama_untied", "qwen2", "qwen3", "mistral"]
TINY_STEP = 1e-6  # a learning rate at which log-probs do not show a stale tensor


class Lab:
    """A learner's model with an adapter and a generator in one process; `open` takes the next family."""

    def open(self, path: str) -> None:
        self.model: PreTrainedModel = load(path)
        torch.manual_seed(0)
        add_lora(self.model, LORA)
        self.generator = Generator(path, SECTION, SyncSection(lora="adapter"), "float32", seed=0, lora=LORA)
        self.generator.ready()
        self.version = 0

    def three_updates(self) -> list[float]:
        """The largest gap between generator and learner before any update and after each of three real ones."""
        gaps = [self.gap()] if self.version == 0 else []
        for seed in range(3):
            train(self.model, steps=2, learning_rate=1e-2, seed=seed)
            assert self.sync()["problems"] == []
            gaps.append(self.gap())
        return gaps

    def tensors(self) -> list[str]:
        return list(adapter_tensors(self.model))

    def base_gap(self) -> float:
        """How far the adapter moves the model: what a generator without it would show."""
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        gap = self.gap()
        for layer in layers:
            layer.enable_adapters(True)
        return gap

    def sync(self, skip: str | None = None, fault: dict[str, str] | None = None) -> dict[str, Any]:
        """One update, through pickled buckets; `skip` loses a tensor at the sender, `fault` at the receiver."""
        self.version += 1
        prepare = ("prepare_adapters", None, (LORA.r, LORA.alpha, fault or {}))
        self.generator._engine.call(lambda engine: engine.collective_rpc(*prepare))
        self.generator.begin_update(self.version, attempt=0)
        named = [(name, tensor) for name, tensor in adapter_tensors(self.model).items() if name != skip]
        settings: dict[str, Any] = {"version": self.version, "attempt": 0, "dtype": torch.float32}
        for item in stream_weights(named, **settings, bucket_bytes=2_000):
            self.generator.load_bucket(pickle.loads(pickle.dumps(item)))
        assert isinstance(item, SentReceipt)
        receipt = self.generator.finish_update()
        receipt["problems"] = compare_receipts(item.digests, receipt["digests"]) + receipt["faults"]
        return receipt

    def gap(self) -> float:
        gaps = []
        for table in list(self.generator.generate(prompt_table(4), iteration=self.version, samples_per_prompt=2))[::2]:
            for row in table.to_pylist():
                assert row["policy_version"] == self.version
                own = response_logprobs(self.model, row["prompt_tokens"], row["response_tokens"])
                gaps.append((torch.tensor(row["response_logprobs"]) - own).abs().max())
        return float(torch.stack(gaps).max())

    def lose_each_tensor(self, where: str) -> dict[str, dict[str, Any]]:
        """For each tensor: a step too small for log-probs, a sync that loses the tensor there, and what was said."""
        receipts = {}
        for name in self.tensors():
            train(self.model, steps=1, learning_rate=TINY_STEP)
            receipts[name] = self.sync(skip=name) if where == "sender" else self.sync(fault={where: name})
        return receipts

    def sync_into_a_deaf_layer(self) -> list[str]:
        """What is said of a sync that one of the engine's layers does not take up."""
        (layer,) = self.generator._engine.call(lambda engine: engine.collective_rpc(_a_layer))
        layer.set_lora = lambda *arguments: None
        try:
            train(self.model, steps=1, learning_rate=TINY_STEP)
            return self.sync()["problems"]
        finally:
            del layer.set_lora

    def sync_after_an_abandoned_one(self) -> list[str]:
        """An update of which half a bucket came, then a whole one."""
        self.version += 1
        self.generator.begin_update(self.version, attempt=0)
        named = list(adapter_tensors(self.model).items())[:1]
        settings: dict[str, Any] = {"version": self.version, "attempt": 0, "dtype": torch.float32}
        self.generator.load_bucket(next(iter(stream_weights(named, **settings, bucket_bytes=2_000))))
        return self.sync()["problems"]


def _a_layer(worker: Any) -> Any:
    modules = worker.model_runner.lora_manager._adapter_manager.modules
    return next(module for name, module in modules.items() if name.endswith("o_proj"))


@pytest.fixture(scope="module")
def lab(ray_local: None) -> Iterator[Any]:
    environment = generator_environment(SECTION, threads=2) | {"PYTHONPATH": str(Path(__file__).parent)}
    actor = ray.remote(Lab).options(num_cpus=0, runtime_env={"env_vars": environment}).remote()
    yield actor
    ray.kill(actor)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_samples_from_the_adapter(lab: Any, family: str, tmp_path: Path) -> None:
    ray.get(lab.open.remote(save_tiny(family, tmp_path)))
    gaps = ray.get(lab.three_updates.remote())
    assert max(gaps) < 1e-4, gaps
    assert ray.get(lab.base_gap.remote()) > 1e-2, "the adapter makes a difference"


def test_no_lost_tensor_goes_unseen(lab: Any) -> None:
    tensors = ray.get(lab.tensors.remote())
    for where in ("sender", "skip_tensor", "ignore_tensor"):
        receipts = ray.get(lab.lose_each_tensor.remote(where))
        assert list(receipts) == tensors
        assert [name for name in tensors if not receipts[name]["faults"]] == [], f"unseen, lost at {where}"
    (problem,) = ray.get(lab.sync_into_a_deaf_layer.remote())[:1]
    assert "the engine holds other values than it received" in problem
    assert ray.get(lab.sync_after_an_abandoned_one.remote()) == []
    assert ray.get(lab.three_updates.remote())[-1] < 1e-4, "a right sync repairs the engine"


def test_gpt2_is_refused_with_the_way_out(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not serve adapters for GPT2LMHeadModel; set sync\.lora=merged"):
        ray.get(lab.open.remote(save_tiny("gpt2", tmp_path)))
