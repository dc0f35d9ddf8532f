"""The generator's pure parts: seeds, the order of batches, Arrow tables."""

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.actors.generator import generator_environment, in_batches, in_order, sample_seed
from rlhf_ray.actors.sample_table import Sample, continuations, sample_meta, sample_table
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.schema import PROMPTS, sample_schema

pytestmark = pytest.mark.unit

PROMPT_TABLE = pa.table(
    {"prompt_id": [7, 9], "prompt": ["ab", "c"], "prompt_tokens": [[1, 2], [3]], "topic": ["x", "y"]},
    schema=pa.schema([*PROMPTS, pa.field("topic", pa.string())]),
)


def test_seeds_differ_in_every_argument_and_are_pinned() -> None:
    seeds = {sample_seed(*key) for key in np.ndindex(3, 4, 5, 6)}
    assert len(seeds) == 3 * 4 * 5 * 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, 2, 3, 4) == 3023191443222632907, "another hash would change every run"


def test_batches_come_as_finished() -> None:
    finished = iter([(2, "c"), (0, "a"), (1, "b")])
    assert list(in_batches(finished, 2)) == [[(2, "c"), (0, "a")], [(1, "b")]]


def test_ordered_batches_wait_for_their_own_outputs_only() -> None:
    positions = [4, 1, 6, 0, 3, 2, 5]
    finished = iter([(position, None) for position in positions])
    batches = in_order(finished, 2, total=7)
    assert [[position for position, _ in batch] for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]


def test_an_ordered_batch_is_handed_on_as_soon_as_it_is_whole() -> None:
    seen = []

    def finished():
        for position in (1, 0, 3, 2):
            seen.append(position)
            yield position, None

    first = next(in_order(finished(), 2, total=4))
    assert [position for position, _ in first] == [0, 1]
    assert seen == [1, 0], "the second batch must not be waited for"


def test_the_table_joins_samples_with_their_prompts() -> None:
    samples = [Sample(1, 0, [5, 6, 7], [-0.5, -1.0, -2.0], "fgh", "stop"), Sample(0, 2, [8], [-0.25], "i", "length")]
    table = sample_table(PROMPT_TABLE, samples, policy_version=4)
    assert table.schema == sample_schema(PROMPT_TABLE.schema)
    assert table.to_pylist()[0] == {
        "prompt_id": 9,
        "sample_index": 0,
        "policy_version": 4,
        "prompt": "c",
        "response": "fgh",
        "prompt_tokens": [3],
        "response_tokens": [5, 6, 7],
        "response_logprobs": [-0.5, -1.0, -2.0],
        "finish_reason": "stop",
        "topic": "y",
    }
    meta = sample_meta(table, samples, 4, 0.5)
    assert meta["prompt_id"].tolist() == [9, 7]
    assert meta["sample_index"].tolist() == [0, 2]
    assert meta["prompt_length"].tolist() == [1, 2]
    assert meta["response_length"].tolist() == [3, 1]
    assert meta["finish_reason"] == {"length": 1, "stop": 1}


class SpacedTokenizer:
    """Joins words with spaces; the decoding of a list has none in front, as with SentencePiece. Token 0 is special."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        text = " ".join(f"w{token}" for token in tokens if token or not skip_special_tokens)
        return text.replace("w8 w9", "nine")  # a boundary that does not survive

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]


def test_text_continues_the_prompt() -> None:
    texts = continuations(SpacedTokenizer(), [[1, 2], [0], [3, 8], list(range(1, 30))], [[4, 0], [5], [9, 1], [2]])
    assert texts == [" w4", "w5", "w9 w1", " w2"]


def test_environment_names_the_threads_and_keeps_the_engine_in_process() -> None:
    environment = generator_environment(GenerationSection(), threads=3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert all(isinstance(value, str) for value in environment.values())
