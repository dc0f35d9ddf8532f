"""A tiny model, synthetic rollouts and learner ranks in processes of their own, for tests of the learner."""

import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from rlhf_ray.config import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.learner.experience import Fetch, RolloutIndex
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.lora import full_tensor

VOCABULARY = 61
Tensors = dict[str, np.ndarray]


def save_tiny_model(folder: Path, scalar: bool = False) -> str:
    """A random Llama (hidden 64, 2 layers) whose log-probs are far from uniform, with a word-level tokenizer."""
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        num_labels=1,
        initializer_range=0.1,
        attention_dropout=0.3,  # must have no effect
    )
    factory = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    factory.from_config(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w2").save_pretrained(folder)
    return str(folder)


def ppo_config(folder: str, **sections: dict[str, Any]) -> PPOConfig:
    """A float32 run; `sections` update the defaults below, section by section."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name": folder},
        "data": {"path": "unused.jsonl"},
        "rewards": {},
        "learner": {"dtype": "float32", "learning_rate": 1e-3, "tokens_per_microbatch": 64},
        "ppo": {"iterations": 1, "old_logprobs": "learner"},
        "sync": {"audit_mean_tolerance": 1e9, "audit_max_tolerance": 1e9},
    }
    return PPOConfig.model_validate(_merged(values, sections))


def sft_config(folder: str, **sections: dict[str, Any]) -> SFTConfig:
    return SFTConfig.model_validate(_merged(_supervised(folder), sections))


def reward_config(folder: str, **sections: dict[str, Any]) -> RewardModelConfig:
    return RewardModelConfig.model_validate(_merged(_supervised(folder), sections))


def dpo_config(folder: str, **sections: dict[str, Any]) -> DPOConfig:
    return DPOConfig.model_validate(_merged(_supervised(folder), sections))


def _supervised(folder: str) -> dict[str, dict[str, Any]]:
    learner = {"dtype": "float32", "learning_rate": 1e-3, "tokens_per_microbatch": 64}
    return {"model": {"name": folder}, "data": {"path": "unused.jsonl"}, "learner": learner}


def _merged(values: dict[str, dict[str, Any]], sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}


def rollouts(
    seed: int, samples: int = 7, *, reference: bool = True, model: str | None = None
) -> tuple[RolloutIndex, Fetch]:
    """Random samples in two Arrow batches; their log-probs are noise, or those of `model`."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, VOCABULARY, random.integers(1, 9)) for _ in range(samples)]
    responses = [random.integers(3, VOCABULARY, random.integers(1, 12)) for _ in range(samples)]
    behaviour = [-random.random(len(response)) for response in responses]
    if model is not None:
        behaviour = [plain_logprobs(model, *pair) for pair in zip(prompts, responses, strict=True)]
    references = [values + 0.1 * random.standard_normal(len(values)) for values in behaviour]
    half = samples // 2
    tables = [
        (
            pa.table(
                {
                    "prompt_tokens": pa.array(prompts[part], pa.list_(pa.int32())),
                    "response_tokens": pa.array(responses[part], pa.list_(pa.int32())),
                    "response_logprobs": pa.array(behaviour[part], pa.list_(pa.float32())),
                }
            ),
            pa.table({"reference_logprobs": pa.array(references[part], pa.list_(pa.float32()))}) if reference else None,
        )
        for part in (slice(0, half), slice(half, samples))
    ]
    index = RolloutIndex(
        prompt_id=np.arange(samples),
        sample_index=np.zeros(samples, dtype=int),
        batch=(np.arange(samples) >= half).astype(int),
        row=np.where(np.arange(samples) >= half, np.arange(samples) - half, np.arange(samples)),
        prompt_length=np.array([len(p) for p in prompts]),
        response_length=np.array([len(r) for r in responses]),
        reward=random.standard_normal(samples),
    )
    return index, tables.__getitem__


def grouped(data: tuple[RolloutIndex, Fetch], samples_per_prompt: int) -> tuple[RolloutIndex, Fetch]:
    """The same samples as if so many successive ones answered one prompt each (an odd number is left for the last)."""
    index, fetch = data
    place = np.arange(len(index))
    index = replace(index, prompt_id=place // samples_per_prompt, sample_index=place % samples_per_prompt)
    return index, fetch


@torch.no_grad()
def plain_logprobs(model: str, prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Log-probs of the response by Hugging Face's own forward pass."""
    lm = AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = torch.from_numpy(np.concatenate([prompt, response]))
    logits = lm(tokens[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, tokens[len(prompt) :, None]).squeeze(1).numpy()


def demonstrations(seed: int, rows: int) -> pa.Table:
    random = np.random.default_rng(seed)
    tokens = [random.integers(3, VOCABULARY, random.integers(4, 20)) for _ in range(rows)]
    lengths = [int(random.integers(1, len(row))) for row in tokens]
    columns = {"tokens": pa.array(tokens, pa.list_(pa.int32())), "prompt_length": pa.array(lengths, pa.int32())}
    return pa.table(columns)


def preferences(seed: int, rows: int) -> pa.Table:
    random = np.random.default_rng(seed)
    sides = [[random.integers(3, VOCABULARY, random.integers(2, 20)) for _ in range(rows)] for _ in range(2)]
    shared = [int(random.integers(1, min(len(one), len(other)))) for one, other in zip(*sides, strict=True)]
    chosen, rejected = (pa.array(side, pa.list_(pa.int32())) for side in sides)
    columns = {"chosen_tokens": chosen, "rejected_tokens": rejected, "prompt_length": pa.array(shared, pa.int32())}
    return pa.table(columns)


def weights(learner: LearnerRank) -> Tensors:
    """Full weights of all of a learner's networks."""
    return {
        f"{owner}/{name}": full_tensor(parameter.detach()).cpu().numpy().copy()
        for owner, trainable in learner.trainables.items()
        for name, parameter in trainable.parameters.items()
    }


def record_gradients(trainable: Trainable) -> list[Tensors]:
    """One entry per optimiser step from now on: the full gradients before clipping."""
    recorded: list[Tensors] = []
    step = trainable.step

    def recording(*args: Any, **kwargs: Any) -> Any:
        gradients = {name: p.grad for name, p in trainable.parameters.items() if p.grad is not None}
        recorded.append({name: full_tensor(grad).cpu().numpy().copy() for name, grad in gradients.items()})
        return step(*args, **kwargs)

    trainable.step = recording  # type: ignore[method-assign]
    return recorded


def largest_difference(one: Tensors, two: Tensors) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def single_rank() -> LearnerGroup:
    torch.set_num_threads(1)
    return LearnerGroup(0, 1, free_address(), torch.device("cpu"), 300)


class Ranks:
    """`size` processes, each a learner rank; `run(function, *arguments)` calls function(group, *arguments) on all."""

    def __init__(self, size: int) -> None:
        context, address = multiprocessing.get_context("spawn"), free_address()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, address, theirs), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 300) -> list[Any]:
        """The results in rank order; raises the first error. A rank that does not answer is an error too."""
        for connection in self._connections:
            connection.send((function, arguments))
        results = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(timeout_s):
                raise TimeoutError(f"rank {rank} does not answer: the ranks have run out of step")
            results.append(connection.recv())
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def close(self) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(None)
            process.join(10)
            process.kill()


def _serve(rank: int, size: int, address: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    group = LearnerGroup(rank, size, address, torch.device("cpu"), 300)
    while (work := connection.recv()) is not None:
        function, arguments = work
        try:
            connection.send(function(group, *arguments))
        except Exception as error:
            connection.send(error)
    group.close()
