"""The same PPO run on a GPU, over each transport. Written on a machine without one: run these first on one that has."""

from pathlib import Path

import pytest
import torch
from tiny_runs import TinyRuns

from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # mean log-prob gap, nats


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transport", ["object_store", "ipc"])
def test_every_sync_of_a_run_on_one_shared_gpu_is_proven(
    tiny: TinyRuns, tmp_path: Path, transport: str, dtype: str
) -> None:
    memory = "generation.gpu_memory_utilization=0.2"
    config = tiny.ppo(tmp_path, transport, f"sync.transport={transport}", f"learner.dtype={dtype}", memory)
    result = PPOTrainer(config).train()
    assert len(result.history) == config.ppo.iterations
    assert all(metrics["audit/mean_gap"] < TOLERANCE[dtype] for metrics in result.history)
    assert (result.policy / "model.safetensors").is_file()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_nccl_between_a_learner_and_a_generator_with_a_gpu_each(tiny: TinyRuns, tmp_path: Path) -> None:
    config = tiny.ppo(tmp_path, "nccl", "sync.transport=nccl", "learner.dtype=float32", "kl.coef=0")
    result = PPOTrainer(config).train()
    assert all(metrics["audit/mean_gap"] < TOLERANCE["float32"] for metrics in result.history)
