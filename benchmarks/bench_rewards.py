"""The reward layer: many components side by side against the slowest of them alone, and what replicas gain.

    python benchmarks/bench_rewards.py [--samples 1000] [--rounds 3] [--threads 2]

Four rules (one computes for 5 ms a call) and a random 27M-parameter reward model score the same samples, each alone and
all together; a rule that sleeps for 50 ms does with one replica and with four. Everything runs as in training: actors
behind pools, fed by the collector of the PPO loop with batches of 16 samples, here from an actor that replays them.
Loading and the first batches are left out; the sides take turns, round by round.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from models import random_reward_model
from report import report

from rlhf_ray.actors.environment import process_environment
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.actors.scorer import scorer_class
from rlhf_ray.config.rewards import FunctionRewardSection, NeuralRewardSection, RewardComponent
from rlhf_ray.schema import PROMPTS, SAMPLES
from rlhf_ray.trainers.collector import RolloutCollector

BATCH, PROMPT_TOKENS, RESPONSE_TOKENS = 16, 32, (32, 96)
VOCABULARY = 4096
RULES = ("brevity", "variety", "digits", "slow")
DEADLINE_S = 1800.0


class Replay:
    """Stands where the generator does: hands out finished samples at once."""

    def __init__(self, table: pa.Table) -> None:
        self._batches = [table.slice(start, BATCH) for start in range(0, table.num_rows, BATCH)]

    def ready(self) -> None: ...

    def health(self) -> dict[str, Any]:
        return {"state": "replaying", "since_s": 0.0}

    def generate(self, prompts: pa.Table, iteration: int, *_: Any, **__: Any) -> Iterator[Any]:
        """The batches that hold the samples of `prompts`, in turn with what the driver keeps of each."""
        for table in self._batches[: -(-prompts.num_rows // BATCH)]:
            yield table
            yield {"prompt_id": table["prompt_id"].to_numpy(), "sample_index": table["sample_index"].to_numpy()}


class Bench:
    """The actors of all components, started once; `seconds` scores with some of them."""

    def __init__(self, components: dict[str, RewardComponent], samples: pa.Table, threads: int) -> None:
        environment = process_environment(threads) | {"PYTHONPATH": str(Path(__file__).parent)}
        options = {"num_cpus": 0.1, "max_concurrency": 4, "runtime_env": {"env_vars": environment}}
        self._prompts = samples.select(PROMPTS.names)
        replay = ray.remote(Replay).options(**options)
        self._replay = ActorPool("generator", lambda _: replay.remote(samples), 1, "generate", returns="streaming")
        self._pools: dict[str, ActorPool] = {}
        for name, section in components.items():
            actor = ray.remote(scorer_class(section)).options(**options)
            start = partial(self._start, actor, name, section, threads)
            self._pools[name] = ActorPool(name, start, section.replicas, "score", deadline_s=DEADLINE_S)
        for pool in [self._replay, *self._pools.values()]:
            pool.wait_ready(DEADLINE_S)
        self.seconds(list(self._pools), 4 * BATCH)

    @staticmethod
    def _start(actor: Any, name: str, section: RewardComponent, threads: int, index: int) -> Any:
        return actor.remote(name, section, SAMPLES.names, threads)

    def seconds(self, names: list[str], samples: int | None = None) -> float:
        """Wall time until the last answer of the named components is in."""
        scorers = {name: self._pools[name] for name in names}
        collector = RolloutCollector(self._replay, scorers, None, 1, None)
        rollouts = collector.collect(self._prompts.slice(0, samples), 0, 0, samples_per_prompt=1)
        assert not rollouts.failures, rollouts.failures[0].describe()
        return rollouts.seconds["rollouts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--waiting-samples", type=int, default=512, help="for the rule that sleeps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        model, parameters = random_reward_model(
            Path(temporary), hidden=args.hidden, layers=args.layers, vocabulary=VOCABULARY
        )
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        rules = {name: FunctionRewardSection(function=f"reward_functions:{name}") for name in RULES}
        waiting = {
            f"wait x{replicas}": FunctionRewardSection(function="reward_functions:wait", replicas=replicas)
            for replicas in (1, 4)
        }
        neural = NeuralRewardSection(model=model, timeout_s=600)
        bench = Bench({**rules, "neural": neural, **waiting}, random_samples(args.samples), args.threads)
        measured: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            sides = {name: ([name], args.samples) for name in (*RULES, "neural")}
            sides |= {"together": ([*RULES, "neural"], args.samples)}
            sides |= {name: ([name], args.waiting_samples) for name in waiting}
            for side, (names, samples) in sides.items():
                measured.setdefault(side, []).append(bench.seconds(names, samples))
    print(f"{parameters / 1e6:.1f}M-parameter model; load average {load:.2f} at the start")
    report("rewards", rows(measured), details={"parameters": parameters, "load_at_start": load, "seconds": measured})


def rows(measured: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Seconds of each side, then the two ratios, taken round by round."""
    together, one, four = measured["together"], measured["wait x1"], measured["wait x4"]
    slowest = [max(seconds) for seconds in zip(*(measured[name] for name in (*RULES, "neural")), strict=True)]
    ratios = {
        "together / slowest alone": [a / b for a, b in zip(together, slowest, strict=True)],
        "gain of 4 replicas": [a / b for a, b in zip(one, four, strict=True)],
    }
    return [
        {
            "what": what,
            "unit": "x" if what in ratios else "s",
            "median": statistics.median(values),
            "least": min(values),
            "greatest": max(values),
        }
        for what, values in (measured | ratios).items()
    ]


def random_samples(count: int) -> pa.Table:
    """Prompts and responses of random words, a token each."""
    random = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(f"w{token}" for token in random.integers(0, VOCABULARY - 2, words))

    lengths = random.integers(*RESPONSE_TOKENS, count)
    samples = [
        {
            "prompt_id": i,
            "sample_index": 0,
            "policy_version": 0,
            "prompt": text(PROMPT_TOKENS) + " ",
            "response": text(int(lengths[i])),
            "prompt_tokens": [],
            "response_tokens": [],
            "response_logprobs": [],
            "finish_reason": "stop",
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(samples, schema=SAMPLES)


if __name__ == "__main__":
    main()
