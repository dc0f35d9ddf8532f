"""Rows held out: about as many as asked for, the same for the same seed, and no prompt on both sides."""

import numpy as np
import pytest
from data_rows import plain_tokenizer, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.data import DemonstrationDataSection, PreferenceDataSection, PromptDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.holdout import held_out_prompts, prompt_hashes, with_held_out
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.errors import DataError

pytestmark = pytest.mark.unit

LETTERS = "abcdefghij"
ROWS = [
    {"prompt": LETTERS[n % 10] + LETTERS[n // 10 % 10], "completion": "a", "chosen": "a", "rejected": LETTERS[n // 60]}
    for n in range(120)
]
KINDS = {
    "demonstrations": (DemonstrationDataSection, load_demonstrations),
    "preferences": (PreferenceDataSection, load_preferences),
    "prompts": (PromptDataSection, lambda section, tokenizer, path=None: load_prompts(section, tokenizer, 99, path)),
}


@pytest.fixture(scope="module")
def tokenizer():
    return plain_tokenizer()


def parts(tmp_path, tokenizer, kind, seed=0, rows=ROWS, **options):
    cls, load = KINDS[kind]
    section = cls(path=write_jsonl(tmp_path / "rows.jsonl", rows), **{"eval_fraction": 0.2} | options)
    return with_held_out(lambda path: load(section, tokenizer, path), section, seed)


def prompts(loaded):
    return {*prompt_hashes(loaded.table, 0).tolist()}


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_is_on_both_sides(tmp_path, tokenizer, kind):
    training, held_out = parts(tmp_path, tokenizer, kind)
    assert not prompts(training) & prompts(held_out)
    assert training.table.num_rows + held_out.table.num_rows == 120
    assert 24 <= held_out.table.num_rows <= 26  # 20 % and what else has the last prompt
    assert (training.report.kept, held_out.report.kept) == (training.table.num_rows, held_out.table.num_rows)


def test_the_seed_chooses_and_the_order_of_rows_does_not(tmp_path, tokenizer):
    _, held_out = parts(tmp_path, tokenizer, "preferences")
    assert parts(tmp_path, tokenizer, "preferences")[1].table.equals(held_out.table)
    assert prompts(parts(tmp_path, tokenizer, "preferences", rows=ROWS[::-1])[1]) == prompts(held_out)
    assert prompts(parts(tmp_path, tokenizer, "preferences", seed=1)[1]) != prompts(held_out)


def test_a_table_in_a_file_is_split_into_files(tmp_path, tokenizer):
    rows = [row | {"completion": "abcdefgh" * 64} for row in ROWS] * 7
    in_memory = parts(tmp_path, tokenizer, "demonstrations", rows=rows)
    options = {"memory_mib": 1, "spill_folder": str(tmp_path / "spill")}
    mapped = parts(tmp_path, tokenizer, "demonstrations", rows=rows, **options)
    assert mapped[0].folder is not None
    for one, other in zip(in_memory, mapped, strict=True):
        assert one.table.equals(other.table)


def test_an_eval_path_is_taken_instead(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "held.jsonl", ROWS[:3])
    training, held_out = parts(tmp_path, tokenizer, "demonstrations", eval_path=path, eval_fraction=0.0)
    assert (training.table.num_rows, held_out.table.num_rows) == (120, 3)
    assert parts(tmp_path, tokenizer, "demonstrations", eval_fraction=0.0)[1] is None


def test_one_prompt_cannot_be_split(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"all 5 rows have the same prompt.*data\.eval_path"):
        parts(tmp_path, tokenizer, "demonstrations", rows=ROWS[:1] * 5)


def test_both_ways_at_once_are_refused():
    with pytest.raises(ValueError, match="set one of them"):
        PromptDataSection(path="x", eval_path="y", eval_fraction=0.1)


@settings(max_examples=50, deadline=None)
@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=60, unique=True),
    copies=st.integers(1, 4),
    fraction=st.floats(0.01, 0.95),
)
def test_as_many_rows_as_whole_prompts_allow(hashes, copies, fraction):
    rows = np.repeat(np.array(hashes, np.uint64), copies)
    chosen = held_out_prompts(rows, fraction)
    assert max(round(fraction * len(rows)), 1) <= chosen.sum() < max(round(fraction * len(rows)), 1) + copies
    assert len({*rows[chosen]} & {*rows[~chosen]}) == 0
    order = np.random.default_rng(0).permutation(len(rows))
    assert (held_out_prompts(rows[order], fraction) == chosen[order]).all()
