"""Prompts in memory become a file that is named by its content."""

import datasets
import pyarrow as pa
import pytest
from data_rows import plain_tokenizer, user

from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.data.memory import DEMONSTRATIONS, PREFERENCES, save_prompts, save_rows
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.sources import load_table
from rlhf_ray.errors import DataError

pytestmark = pytest.mark.unit

ROWS = [{"prompt": "abc", "level": 1}, {"prompt": "de", "level": 2}]


@pytest.mark.parametrize(
    "prompts", [ROWS, tuple(ROWS), pa.Table.from_pylist(ROWS), datasets.Dataset.from_list(ROWS)], ids=repr
)
def test_every_form_of_the_same_rows_is_the_same_file(tmp_path, prompts):
    path = save_prompts(prompts, tmp_path / "made")
    assert path == save_prompts(ROWS, tmp_path / "made")
    assert load_table(str(path)).to_pylist() == ROWS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_strings_and_conversations_become_the_prompt_column(tmp_path):
    path = save_prompts(["abc", "de"], tmp_path)
    table = load_prompts(PromptDataSection(path=str(path)), plain_tokenizer(), 99).table
    assert table["prompt"].to_pylist() == ["abc", "de"]
    assert load_table(str(save_prompts([[user("a")]], tmp_path))).to_pylist() == [{"prompt": [user("a")]}]


def test_demonstrations_and_preferences_have_columns_of_their_own(tmp_path):
    whole = save_rows(["one text"], tmp_path, DEMONSTRATIONS)
    assert whole.name.startswith("demonstrations-")
    assert load_table(str(whole)).to_pylist() == [{"text": "one text"}]
    chat = [user("a"), {"role": "assistant", "content": "b"}]
    assert load_table(str(save_rows([chat], tmp_path, DEMONSTRATIONS))).to_pylist() == [{"messages": chat}]
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert load_table(str(save_rows(pairs, tmp_path, PREFERENCES))).to_pylist() == pairs
    with pytest.raises(DataError, match=r"preference 0 \(the first is 0\): holds a string"):
        save_rows(["a"], tmp_path, PREFERENCES)
    with pytest.raises(DataError, match=r"Preferences must be a list of rows \(dicts\)"):
        save_rows("pairs.jsonl", tmp_path, PREFERENCES)


def test_other_prompts_are_another_file(tmp_path):
    assert save_prompts(["a"], tmp_path) != save_prompts(["b"], tmp_path)


def test_a_selection_of_a_dataset_is_what_is_saved(tmp_path):
    selected = datasets.Dataset.from_list(ROWS).select([1])
    assert load_table(str(save_prompts(selected, tmp_path))).to_pylist() == ROWS[1:]


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([], "There are no prompts"),
        ("prompts.jsonl", r"not a string\. The path of a file goes into data\.path"),
        ({"prompt": ["a"]}, "not an object"),
        (7, "not a number"),
        (["a", 7], r"prompt 1 \(the first is 0\): holds a number"),
        (["a", [user("b")]], r"prompt 1 \(the first is 0\): column 'prompt' holds a list unlike the rows before"),
    ],
)
def test_what_is_no_list_of_prompts_is_explained(tmp_path, prompts, says):
    with pytest.raises(DataError, match=says):
        save_prompts(prompts, tmp_path)
    assert not list(tmp_path.iterdir())
