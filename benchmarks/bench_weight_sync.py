"""Seconds of a weight sync of a 100M-parameter float32 model, and the multiple of one warm memcpy of its bytes.

    python benchmarks/bench_weight_sync.py [--rounds 20] [--generators 1] [--bucket-mib 64]

A learner actor and vLLM generators on one Ray node; digests on both sides and the proof of loading included. The
first syncs touch memory for the first time and are left out (`--warmup`). The memcpy is timed before each sync, in
the driver.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from models import random_llama
from report import report
from transformers import AutoModelForCausalLM

from rlhf_ray.actors.generator import Generator, generator_environment
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.config.ppo import GenerationSection, SyncSection
from rlhf_ray.weights.bucket import stream_weights
from rlhf_ray.weights.publish import WeightSync


class Learner:
    """The least that can publish: a model."""

    def __init__(self, path: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def publish(self, version: int, attempt: int, dtype: str, bucket_bytes: int) -> Iterator[Any]:
        yield from stream_weights(
            self.model.named_parameters(),
            version=version,
            attempt=attempt,
            dtype=getattr(torch, dtype),
            bucket_bytes=bucket_bytes,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--bucket-mib", type=int, default=SyncSection().bucket_mib)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    path, parameters = random_llama(
        Path(tempfile.mkdtemp()), hidden=arguments.hidden, layers=arguments.layers, vocabulary=8192
    )
    section = GenerationSection(max_context_tokens=128, cpu_kv_cache_gib=0.125)
    sync_section = SyncSection(bucket_mib=arguments.bucket_mib)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    environment = generator_environment(section, arguments.threads)
    options = {"num_cpus": 0.25, "runtime_env": {"env_vars": environment}}
    remote = ray.remote(Generator).options(max_concurrency=8, **options)
    generators = [remote.remote(path, section, sync_section, "float32", 0) for _ in range(arguments.generators)]
    learner = ray.remote(Learner).options(**options).remote(path)

    places = generators.__getitem__
    pool = ActorPool("generator", places, len(generators), "generate", returns="streaming", weights=True)
    pool.wait_ready(600)
    sync = WeightSync([learner], pool.replicas, sync_section, "float32")
    source = np.ones(parameters, np.float32)
    target = np.ones(parameters, np.float32)
    rows = []
    for version in range(1, arguments.warmup + arguments.rounds + 1):
        started = time.perf_counter()
        np.copyto(target, source)
        memcpy = time.perf_counter() - started
        seconds = sync.publish(version).seconds
        rows.append({"sync": str(version), "memcpy s": memcpy, "sync s": seconds, "multiple": seconds / memcpy})
    steady = rows[arguments.warmup :]
    keys = ("memcpy s", "sync s", "multiple")
    summary = {"sync": "median, steady", **{key: statistics.median(row[key] for row in steady) for key in keys}}
    print(f"{parameters / 1e6:.1f}M parameters, {parameters * 4 / 1e6:.0f} MB, {arguments.generators} generator(s)")
    report("weight_sync", [*rows, summary])


if __name__ == "__main__":
    main()
