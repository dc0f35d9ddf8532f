"""Real generator actors with a learner beside them: what is sampled, how it streams, and how the weights reach them."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from tiny_models import EOS, load, prompt_table, response_logprobs, save_tiny, train
from transformers import PreTrainedModel

from rlhf_ray.actors.generator import Generator, generator_environment
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.config.ppo import GenerationSection, SyncSection
from rlhf_ray.errors import AuditError, ConfigError, DataError, InfrastructureError
from rlhf_ray.schema import sample_schema
from rlhf_ray.weights.bucket import stream_weights
from rlhf_ray.weights.publish import WeightSync

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

SECTION = GenerationSection(max_new_tokens=12, max_context_tokens=64, cpu_kv_cache_gib=0.0625, stream_samples=5)
LOST = "model.layers.1.mlp.up_proj.weight"


class FakeLearner:
    """One rank around a plain model: the methods that `WeightSync` and these tests call."""

    def __init__(self, path: str) -> None:
        self.model: PreTrainedModel = load(path)
        self.skip: str | None = None

    def train(self) -> None:
        train(self.model, steps=1, learning_rate=1e-2)

    def lose(self, name: str | None) -> None:
        self.skip = name

    def publish(self, version: int, attempt: int, dtype: str, bucket_bytes: int) -> Iterator[Any]:
        named = ((name, tensor) for name, tensor in self.model.named_parameters() if name != self.skip)
        settings: dict[str, Any] = {"version": version, "attempt": attempt, "dtype": getattr(torch, dtype)}
        yield from stream_weights(named, **settings, bucket_bytes=bucket_bytes)

    def gap(self, rows: list[dict[str, Any]]) -> float:
        own = [response_logprobs(self.model, row["prompt_tokens"], row["response_tokens"]) for row in rows]
        gaps = [(torch.tensor(row["response_logprobs"]) - o).abs().max() for row, o in zip(rows, own, strict=True)]
        return torch.stack(gaps).max().item()


@pytest.fixture(scope="module")
def actors(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two generators, one of which can be told to lose a tensor, and the learner they get weights from."""
    path = save_tiny("llama_tied", tmp_path_factory.mktemp("models"))
    here = {"PYTHONPATH": str(Path(__file__).parent)}
    environment = generator_environment(SECTION, threads=2)
    remote = ray.remote(Generator).options(num_cpus=0.1, max_concurrency=8, runtime_env={"env_vars": environment})
    generators = [remote.remote(path, SECTION, SyncSection(), "float32", seed=5) for _ in range(2)]
    learner = ray.remote(FakeLearner).options(num_cpus=0.1, runtime_env={"env_vars": here}).remote(path)
    assert ray.get(generators[0].health.remote(), timeout=120)["state"] == "loading"
    pool = ActorPool("generator", generators.__getitem__, 2, "generate", returns="streaming", weights=True)
    pool.wait_ready(300)
    sync = WeightSync([learner], pool.replicas, SyncSection(), "float32", timeout_s=120)
    sync._bucket_bytes = 20_000  # a dozen buckets of a model this small
    yield SimpleNamespace(generators=generators, learner=learner, sync=sync)
    for actor in [*generators, learner]:
        ray.kill(actor)


def stream(generator: Any, prompts: pa.Table, samples: int = 1, **options: Any) -> tuple[list[pa.Table], list[dict]]:
    """All tables and metas that a generator streams."""
    refs = generator.generate.options(num_returns="streaming").remote(prompts, 3, samples, **options)
    items = [ray.get(ref) for ref in refs]
    return items[::2], items[1::2]


def rows(generator: Any, prompts: pa.Table, samples: int = 1, **options: Any) -> list[dict[str, Any]]:
    """What a generator samples, in the order of (prompt, sample)."""
    tables, _ = stream(generator, prompts, samples, **options)
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: (row["prompt_id"], row["sample_index"]))


def tokens(sampled: list[dict[str, Any]]) -> list[list[int]]:
    return [row["response_tokens"] for row in sampled]


def test_samples_stream_as_they_finish_with_their_meta(actors: SimpleNamespace) -> None:
    prompts = prompt_table(7, topic=True)
    tables, metas = stream(actors.generators[0], prompts, samples=3)
    assert [table.num_rows for table in tables] == [5, 5, 5, 5, 1]
    whole = pa.concat_tables(tables)
    assert whole.schema == sample_schema(prompts.schema)
    keys = [(row["prompt_id"], row["sample_index"]) for row in whole.to_pylist()]
    assert sorted(keys) == [(10 * i, j) for i in range(7) for j in range(3)]
    for table, meta in zip(tables, metas, strict=True):
        assert meta["prompt_id"].tolist() == table["prompt_id"].to_pylist()
        assert meta["response_length"].tolist() == [len(t) for t in table["response_tokens"].to_pylist()]
        assert sum(meta["finish_reason"].values()) == table.num_rows
    lengths = np.concatenate([meta["response_length"] for meta in metas])
    assert (np.diff([meta["response_length"].max() for meta in metas]) >= 0).all(), "short ones come first"
    assert metas[-1]["last"]
    assert metas[-1]["tokens"] == lengths.sum()
    assert metas[-1]["tokens_per_s"] > 0
    for row in whole.to_pylist():
        assert row["topic"] == f"t{row['prompt_id'] // 10}"
        ended = row["response_tokens"][-1] == EOS
        assert row["finish_reason"] == ("stop" if ended else "length")
        spoken = row["response_tokens"][:-1] if ended else row["response_tokens"]
        assert row["response"].startswith(" "), "it continues the prompt's last word"
        assert row["response"].split() == [f"w{t}" for t in spoken if t < EOS - 1]


def test_log_probs_are_raw_whatever_the_sampling(actors: SimpleNamespace) -> None:
    for sampling in ({}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}, {"temperature": 0.0}):
        sampled = rows(actors.generators[0], prompt_table(4), 2, sampling=sampling)
        assert ray.get(actors.learner.gap.remote(sampled)) < 1e-4, sampling


def test_one_and_two_generators_sample_the_same_tokens(actors: SimpleNamespace) -> None:
    prompts = prompt_table(12)
    one = rows(actors.generators[0], prompts, 4)
    halves = [rows(actors.generators[i], prompts.take(list(range(i, 12, 2))), 4) for i in range(2)]
    two = sorted(halves[0] + halves[1], key=lambda row: (row["prompt_id"], row["sample_index"]))
    assert tokens(one) == tokens(two)
    np.testing.assert_allclose(
        np.concatenate([row["response_logprobs"] for row in one]),
        np.concatenate([row["response_logprobs"] for row in two]),
        atol=1e-5,
    )


def test_some_of_the_samples_are_those_of_all(actors: SimpleNamespace) -> None:
    prompts = prompt_table(3)
    every = {(row["prompt_id"], row["sample_index"]): row for row in rows(actors.generators[0], prompts, 3)}
    some = rows(actors.generators[1], prompts, 3, wanted=np.array([[0, 2], [2, 0], [2, 1]]))
    assert [(row["prompt_id"], row["sample_index"]) for row in some] == [(0, 2), (20, 0), (20, 1)]
    assert tokens(some) == [every[0, 2]["response_tokens"], *(every[20, i]["response_tokens"] for i in (0, 1))]


def test_seeds_make_samples(actors: SimpleNamespace) -> None:
    generator, prompts = actors.generators[0], prompt_table(3)
    first = tokens(rows(generator, prompts, 3))
    assert tokens(rows(generator, prompts, 3)) == first, "the same again"
    assert len({tuple(t) for t in first}) == 9, "samples of a prompt differ"
    assert tokens(rows(generator, prompts, 3, seed=6)) != first
    assert tokens(rows(generator, prompts, 3, seed=5)) == first, "the run's own seed"
    refs = generator.generate.options(num_returns="streaming").remote(prompts, 4, 3)
    assert sorted(tokens(ray.get(next(refs)).to_pylist())) != sorted(first), "another iteration"
    greedy = tokens(rows(generator, prompts, 2, sampling={"temperature": 0.0}))
    assert greedy[0::2] == greedy[1::2]


def test_chunks_of_prompts_come_whole_and_in_order(actors: SimpleNamespace) -> None:
    tables, _ = stream(actors.generators[0], prompt_table(5), samples=2, group_chunks=2)
    keys = [[(row["prompt_id"], row["sample_index"]) for row in table.to_pylist()] for table in tables]
    assert keys == [
        [(0, 0), (0, 1), (10, 0), (10, 1)],
        [(20, 0), (20, 1), (30, 0), (30, 1)],
        [(40, 0), (40, 1)],
    ]


def test_stop_conditions_and_lengths(actors: SimpleNamespace) -> None:
    generator, prompts = actors.generators[0], prompt_table(4)
    free = rows(generator, prompts, 4)
    word = next(row for row in free if len(row["response_tokens"]) > 4)["response"].split()[2]
    stopped = rows(generator, prompts, 4, sampling={"stop": [word + " "]})
    hit = [pair for pair in zip(free, stopped, strict=True) if pair[0]["response_tokens"] != pair[1]["response_tokens"]]
    assert hit, "some response must hold the stop string"
    for before, after in hit:
        assert after["finish_reason"] == "stop"
        assert before["response_tokens"][: len(after["response_tokens"])] == after["response_tokens"]
        assert before["response"].startswith(after["response"])
        assert word + " " not in after["response"]
    for row in rows(generator, prompts, 4, sampling={"max_new_tokens": 3}):
        assert len(row["response_tokens"]) <= 3
    for row in rows(generator, prompts, 4, sampling={"max_new_tokens": 9, "min_new_tokens": 9}):
        assert len(row["response_tokens"]) == 9
        assert EOS not in row["response_tokens"][:8]


def test_wrong_requests_are_refused_and_the_generator_goes_on(actors: SimpleNamespace) -> None:
    generator = actors.generators[0]
    long = pa.table({"prompt_id": [4], "prompt": ["x"], "prompt_tokens": [[1] * 64]}, schema=prompt_table(1).schema)
    with pytest.raises(DataError, match="Prompt 4 has 64 tokens"):
        rows(generator, long)
    with pytest.raises(ConfigError, match="Sampling has no max_tokens"):
        rows(generator, prompt_table(1), sampling={"max_tokens": 3})
    assert len(rows(generator, prompt_table(1))) == 1


def test_more_prompt_tokens_than_one_step_prefills(actors: SimpleNamespace) -> None:
    """A prompt that were prefilled in parts would stop the engine: vLLM cannot rewind a CPU random generator."""
    short = prompt_table(200)
    column = short.schema.get_field_index("prompt_tokens")
    field = short.schema.field(column)
    prompts = short.set_column(column, field, pa.array([list(range(3, 53))] * 200, field.type))
    assert all(len(row["response_tokens"]) for row in rows(actors.generators[0], prompts))


def test_health_answers_while_it_generates(actors: SimpleNamespace) -> None:
    generator = actors.generators[0]
    refs = generator.generate.options(num_returns="streaming").remote(prompt_table(40), 0, 20)
    states = set()
    deadline = time.monotonic() + 60
    while "generating" not in states and time.monotonic() < deadline:
        started = time.perf_counter()
        states.add(ray.get(generator.health.remote())["state"])
        assert time.perf_counter() - started < 5
    assert "generating" in states
    assert sum(1 for _ in refs) == 2 * 40 * 20 / 5


def test_published_weights_reach_every_generator(actors: SimpleNamespace) -> None:
    for version in (1, 2, 3):
        ray.get(actors.learner.train.remote())
        report = actors.sync.publish(version)
        assert (report.version, len(report.digests)) == (version, 20)
        for generator in actors.generators:
            sampled = rows(generator, prompt_table(3), 2)
            assert {row["policy_version"] for row in sampled} == {version}
            assert ray.get(actors.learner.gap.remote(sampled)) < 1e-4
    with pytest.raises(AuditError, match="holds version 3 of attempt 0"):
        actors.sync.publish(2)
    assert actors.sync.publish(1, attempt=1).version == 1, "a rewind is a new attempt"
    assert ray.get(actors.generators[0].health.remote())["attempt"] == 1


def test_running_requests_finish_with_the_weights_they_began_with(actors: SimpleNamespace) -> None:
    generator = actors.generators[0]
    held = ray.get(generator.health.remote())
    prompts = prompt_table(30)
    alone = rows(generator, prompts, 10)
    refs = generator.generate.options(num_returns="streaming").remote(prompts, 3, 10)
    first = ray.get(next(refs))  # requests are running now
    ray.get(generator.begin_update.remote(held["version"] + 1, held["attempt"]))
    assert ray.get(generator.health.remote())["running"] == 0
    tables = [first, *[ray.get(ref) for ref in refs][1::2]]
    sampled = sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: (row["prompt_id"], row["sample_index"]))
    assert tokens(sampled) == tokens(alone)
    assert {row["policy_version"] for row in sampled} == {held["version"]}
    with pytest.raises(InfrastructureError, match="between weights version"):
        rows(generator, prompts)
    ray.get(actors.learner.train.remote())
    actors.sync.publish(held["version"] + 2, held["attempt"])  # takes the place of the abandoned update
    assert {row["policy_version"] for row in rows(generator, prompts)} == {held["version"] + 2}


def test_a_lost_tensor_stops_the_run_and_names_itself_and_the_replica(actors: SimpleNamespace) -> None:
    held = ray.get(actors.generators[1].health.remote())
    version, attempt = held["version"], held["attempt"]
    ray.get(actors.generators[1].init_transfer.remote({"fault": {"skip_tensor": LOST}}))
    with pytest.raises(AuditError, match=rf"to generator 1 failed: 1 not loaded: {LOST}; .*elements loaded"):
        actors.sync.publish(version + 1, attempt)
    with pytest.raises(InfrastructureError, match="publish again"):
        rows(actors.generators[1], prompt_table(1))
    ray.get(actors.generators[1].init_transfer.remote({"fault": {}}))
    ray.get(actors.learner.lose.remote(LOST))
    with pytest.raises(AuditError, match=r"to generator 0 failed: .*gate_up_proj.*elements loaded"):
        actors.sync.publish(version + 2, attempt)
    ray.get(actors.learner.lose.remote(None))
    actors.sync.publish(version + 3, attempt)
    assert ray.get(actors.learner.gap.remote(rows(actors.generators[1], prompt_table(2)))) < 1e-4
