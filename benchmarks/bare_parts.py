"""The work of a PPO iteration without its orchestration: no Ray, no streaming, no weight sync, a process per part.

generate  vLLM's own LLM.generate on the requests that our generator would get; leaves the samples behind for the others
score     the reference's forward passes over all samples at once, and the reward function in a plain loop
train     the learner's PPO objective on samples and reference log-probs that lie ready
"""

import argparse
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recipes import RECIPES, ppo_config
from side import give_result
from workload import WORKLOADS, vowel_share

from rlhf_ray import schema
from rlhf_ray.config import PPOConfig

Step = Callable[[], Any]
FROZEN = 1e-12  # learning rate: the samples of all iterations come from the first weights, and the audit looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds model/ and prompts.jsonl; takes the samples")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    runs, settings = args.folder / "runs", {"threads": args.threads, "seed": 0, "iterations": args.iterations}
    config = ppo_config(args.recipe, WORKLOADS[args.workload], args.folder, runs, **settings)
    config.learner.learning_rate = FROZEN
    seconds, cpu_seconds = [], []
    for step in PARTS[args.part](config, args.folder):
        started, cpu_started = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    give_result({"seconds": seconds, "cpu_seconds": cpu_seconds})


def generate(config: PPOConfig, folder: Path) -> Iterator[Step]:
    """One LLM.generate per iteration."""
    from rlhf_ray.actors.generator import generator_environment, sample_seed
    from rlhf_ray.data.order import draw
    from rlhf_ray.data.prompts import load_prompts
    from rlhf_ray.hub import load_tokenizer

    environment = generator_environment(config.generation, config.resources.threads or 1)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("VLLM_")})
    from vllm import LLM, SamplingParams

    section, ppo = config.generation, config.ppo
    engine = LLM(
        config.model.name,
        dtype=compute_dtype(config),
        enforce_eager=True,
        kv_cache_memory_bytes=int(section.cpu_kv_cache_gib * 2**30),
        max_num_seqs=section.max_concurrent_samples,
        seed=config.run.seed,
    )
    prompts = load_prompts(config.data, load_tokenizer(config.model.name), 128).table
    for iteration in range(ppo.iterations or 0):
        rows = draw(len(prompts), ppo.prompts_per_iteration, iteration, config.run.seed)
        table = prompts.take(rows)
        requests = [{"prompt_token_ids": tokens} for tokens in table["prompt_tokens"].to_pylist()]
        parameters = [
            SamplingParams(
                seed=sample_seed(config.run.seed, iteration, prompt_id, 0),
                max_tokens=section.max_new_tokens,
                min_tokens=section.min_new_tokens,
                logprobs=0,
            )
            for prompt_id in table["prompt_id"].to_pylist()
        ]
        outputs: list[Any] = []
        yield lambda: outputs.extend(engine.generate(requests, parameters, use_tqdm=False))  # noqa: B023
        pq.write_table(as_samples(table, outputs), folder / f"samples-{iteration}.parquet")


def as_samples(prompts: pa.Table, outputs: list[Any]) -> pa.Table:
    """vLLM's answers as the table that scorers and learner take."""
    from rlhf_ray.actors.sample_table import Sample, sample_table

    samples = []
    for row, output in enumerate(outputs):
        answer = output.outputs[0]
        logprobs = [step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        samples.append(Sample(row, 0, answer.token_ids, logprobs, answer.text, answer.finish_reason))
    return sample_table(prompts, samples, policy_version=0)


def score(config: PPOConfig, folder: Path) -> Iterator[Step]:
    """Reference log-probs and rewards of one iteration."""
    from rlhf_ray.actors.reference import Reference

    section = config.reference
    reference = Reference(config.model, compute_dtype(config), section.tokens_per_batch, 1.0)
    for iteration in range(config.ppo.iterations or 0):
        samples = pq.read_table(folder / f"samples-{iteration}.parquet", schema=schema.SAMPLES)
        answer: list[pa.Table] = []

        def step(samples: pa.Table = samples, answer: list[pa.Table] = answer) -> None:
            answer.append(reference.logprobs(samples)[0])
            for prompt, response in zip(samples["prompt"].to_pylist(), samples["response"].to_pylist(), strict=True):
                vowel_share(prompt, response)

        yield step
        pq.write_table(answer[0], folder / f"reference-{iteration}.parquet")


def train(config: PPOConfig, folder: Path) -> Iterator[Step]:
    """All passes and optimiser steps of one iteration."""
    import torch

    from rlhf_ray.learner.group import LearnerGroup
    from rlhf_ray.learner.ppo import PPOIteration
    from rlhf_ray.learner.rank import LearnerRank

    iterations = config.ppo.iterations or 0
    group = LearnerGroup(0, 1, f"127.0.0.1:{free_port()}", torch.device("cpu"), 60.0)
    objective = LearnerRank(config, group, iterations).ppo(compute_dtype(config))
    for iteration in range(iterations):
        samples = pq.read_table(folder / f"samples-{iteration}.parquet", schema=schema.SAMPLES).combine_chunks()
        answer = pq.read_table(folder / f"reference-{iteration}.parquet", schema=schema.REFERENCE).combine_chunks()
        index, position = rollout_index(samples), PPOIteration(iteration, config.kl.coef)
        yield lambda: objective.train(index, lambda batch: (samples, answer), position)  # noqa: B023


def rollout_index(samples: pa.Table) -> Any:
    """All rows of `samples`, one Arrow batch, in order."""
    from rlhf_ray.learner.experience import RolloutIndex

    rows = np.arange(len(samples))
    return RolloutIndex(
        prompt_id=samples["prompt_id"].to_numpy(),
        sample_index=samples["sample_index"].to_numpy(),
        batch=np.zeros_like(rows),
        row=rows,
        prompt_length=np.array([len(tokens) for tokens in samples["prompt_tokens"]]),
        response_length=np.array([len(tokens) for tokens in samples["response_tokens"]]),
        reward=np.array([vowel_share("", response) for response in samples["response"].to_pylist()]),
    )


def compute_dtype(config: PPOConfig) -> str:
    """What the recipes set: never `auto`."""
    return config.learner.dtype


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PARTS: dict[str, Callable[[PPOConfig, Path], Iterator[Step]]] = {"generate": generate, "score": score, "train": train}

if __name__ == "__main__":
    main()
