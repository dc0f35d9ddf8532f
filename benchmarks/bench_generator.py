"""Tokens per second of a Generator actor, streaming to the driver, against bare `vllm.LLM.generate`.

    python benchmarks/bench_generator.py [--prompts 64] [--tokens 128] [--rounds 5]

Both run in a Ray actor of the same environment, on the same random 4.5M-parameter Llama in float32, with log-probs
and a seed per sample, and take turns within each round. The bare side is timed inside its actor; ours from the
driver's call until the last Arrow batch is there.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from models import random_llama
from report import report

from rlhf_ray.actors.generator import Generator, generator_environment, sample_seed
from rlhf_ray.config.ppo import GenerationSection, SyncSection
from rlhf_ray.schema import PROMPTS


class BareEngine:
    """What a script that uses vLLM directly would do."""

    def __init__(self, path: str, section: GenerationSection) -> None:
        from vllm import LLM

        self.llm = LLM(
            path,
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=int(section.cpu_kv_cache_gib * 2**30),
            max_model_len=section.max_context_tokens,
            max_num_seqs=section.max_concurrent_samples,
        )

    def generate(self, prompts: list[list[int]], tokens: int, iteration: int) -> float:
        """Seconds of one `LLM.generate`."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                seed=sample_seed(0, iteration, i, 0), max_tokens=tokens, min_tokens=tokens, temperature=1.0, logprobs=0
            )
            for i in range(len(prompts))
        ]
        started = time.perf_counter()
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - started
        assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
        return seconds


def ours(generator: ray.actor.ActorHandle, prompts: pa.Table, iteration: int) -> float:
    """Seconds until the driver holds every batch."""
    started = time.perf_counter()
    for ref in generator.generate.options(num_returns="streaming").remote(prompts, iteration, 1):
        ray.get(ref)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    n, tokens = arguments.prompts, arguments.tokens

    path, parameters = random_llama(Path(tempfile.mkdtemp()), hidden=256, layers=4, vocabulary=2048)
    section = GenerationSection(
        max_new_tokens=tokens, min_new_tokens=tokens, max_context_tokens=tokens + 64, cpu_kv_cache_gib=0.5
    )
    prompt_tokens = np.random.default_rng(0).integers(0, 2000, (n, 32)).tolist()
    columns = {"prompt_id": list(range(n)), "prompt": [""] * n, "prompt_tokens": prompt_tokens}
    prompts = pa.table(columns, schema=PROMPTS)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": generator_environment(section, arguments.threads)}}
    bare = ray.remote(BareEngine).options(**options).remote(path, section)
    generator = ray.remote(Generator).options(max_concurrency=8, **options)
    generator = generator.remote(path, section, SyncSection(), "float32", 0)
    ray.get([bare.generate.remote(prompt_tokens, tokens, 0), generator.ready.remote()])
    ours(generator, prompts, 0)

    rows = []
    for iteration in range(1, arguments.rounds + 1):
        bare_seconds = ray.get(bare.generate.remote(prompt_tokens, tokens, iteration))
        own_seconds = ours(generator, prompts, iteration)
        rows.append(_row(str(iteration), n * tokens / bare_seconds, n * tokens / own_seconds))
    medians = [statistics.median(row[key] for row in rows) for key in ("bare tokens/s", "generator tokens/s")]
    rows.append({**_row("median", *medians), "ratio": statistics.median(row["ratio"] for row in rows)})
    print(f"{parameters / 1e6:.1f}M parameters, {n} x {tokens} tokens, {arguments.threads} threads each")
    report("generator", rows)


def _row(label: str, bare: float, own: float) -> dict[str, str | float]:
    return {"round": label, "bare tokens/s": bare, "generator tokens/s": own, "ratio": own / bare}


if __name__ == "__main__":
    main()
