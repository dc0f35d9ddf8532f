"""How much arithmetic a PPO iteration needs, and how fast this machine multiplies matrices.

    floating-point operations = passes x 2 x (layer parameters x tokens + head parameters x response tokens)

`tokens` are the real ones, prompt + response, without padding. Layer parameters are the matrices of the decoder layers;
embeddings are looked up, not multiplied. A backward pass counts as two forward passes. Attention's own products (under
5 % here), norms, softmax, sampling and the optimiser are not counted, so that the fraction is rather too low.

    passes = generation 1 + reference 1 + policy update 3 + (a critic of its own: 3)

Old log-probs come from the generator, old values from the update's own forward pass: neither is a pass of its own.
"""

import statistics
import time
from pathlib import Path

import torch
from workload import Workload, read_prompts

SIZE = 2048
POLICY_PASSES, CRITIC_PASSES = 5, 3


def operations(folder: Path, workload: Workload, separate_critic: bool) -> float:
    """Floating-point operations of one iteration, with the model and the prompts (their mean length) in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(folder / "model")
    head = network.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for name, p in network.named_parameters() if ".layers." in name and p.ndim == 2)
    prompts = AutoTokenizer.from_pretrained(folder / "model")(read_prompts(folder))["input_ids"]
    response_tokens = workload.samples * workload.response_tokens
    tokens = workload.samples * statistics.mean(map(len, prompts)) + response_tokens
    policy = 2 * (layers * tokens + head * response_tokens) * POLICY_PASSES
    return policy + (2 * layers * tokens * CRITIC_PASSES if separate_critic else 0)


def matrix_rate(dtype: torch.dtype, repeats: int = 20) -> float:
    """Best rate of a [2048, 2048] x [2048, 2048] product in operations per second, with this process's threads."""
    a, b = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, SIZE, dtype=dtype)
    seconds = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds[3:])


if __name__ == "__main__":
    from side import give_result

    give_result({str(dtype).removeprefix("torch."): matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)})
