"""The user's function over rows: what it may do, and every way in which it can fail."""

import sys

import pytest
from data_rows import plain_tokenizer, write_jsonl

from rlhf_ray.config.data import DemonstrationDataSection, PreferenceDataSection, PromptDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

MODULE = """
reused = {}

def ask(row):
    return {"prompt": row["question"], "level": row["level"], "twice": [row["level"]] * 2}

def odd(row):
    return row if row["level"] % 2 else None

def one_dict(row):
    reused["prompt"] = row["question"]
    return reused

def nothing(row):
    return None

def raises(row):
    return {"prompt": 1 / (row["level"] - 2)}

def wrong_type(row):
    return row["question"]

def mixed(row):
    return {"prompt": row["question"] if row["level"] < 2 else 7}

def completed(row):
    return {"prompt": row["question"], "completion": "j", "chosen": "j", "rejected": "i"}

constant = 3
"""
ROWS = [{"question": letter, "level": level} for level, letter in enumerate("abcdef")]


@pytest.fixture(scope="module")
def tokenizer():
    return plain_tokenizer()


@pytest.fixture
def section(tmp_path, monkeypatch):
    (tmp_path / "my_rows.py").write_text(MODULE)
    (tmp_path / "my_broken_rows.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_rows", "my_broken_rows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)

    def make(function, kind=PromptDataSection, **options):
        return kind(path=path, preprocess=f"my_rows:{function}", **options)

    return make


def test_rows_become_what_the_function_returns(section, tokenizer):
    rows = load_prompts(section("ask"), tokenizer, 99).table.to_pylist()
    assert [row["prompt"] for row in rows] == list("abcdef")
    assert rows[3]["twice"] == [3, 3]
    assert "question" not in rows[0]


def test_dropped_rows_are_counted_and_ids_stay_those_of_the_source(section, tokenizer):
    loaded = load_prompts(section("odd", prompt_column="question"), tokenizer, 99)
    assert loaded.table["prompt_id"].to_pylist() == [1, 3, 5]
    assert "3 dropped by preprocess" in loaded.report.describe()
    assert loaded.report.rows.left_out == 0


def test_max_samples_chooses_among_what_is_left(section, tokenizer):
    loaded = load_prompts(section("odd", prompt_column="question", max_samples=2, shuffle=False), tokenizer, 99)
    assert loaded.table["prompt_id"].to_pylist() == [1, 3]
    assert "1 left out by max_samples" in loaded.report.describe()


def test_a_function_may_return_the_same_dict_again(section, tokenizer):
    assert load_prompts(section("one_dict"), tokenizer, 99).table["prompt"].to_pylist() == list("abcdef")


def test_held_out_rows_are_preprocessed_too(section, tokenizer, tmp_path):
    held_out = write_jsonl(tmp_path / "held_out.jsonl", ROWS[:2])
    table = load_prompts(section("ask", eval_path=held_out, max_samples=1), tokenizer, 99, path=held_out).table
    assert table["prompt"].to_pylist() == ["a", "b"]


def test_demonstrations_and_preferences_are_preprocessed(section, tokenizer):
    demonstrations = load_demonstrations(section("completed", DemonstrationDataSection), tokenizer).table
    preferences = load_preferences(section("completed", PreferenceDataSection), tokenizer).table
    assert tokenizer.decode(demonstrations["tokens"][0].as_py()) == "<s>aj</s>"
    assert tokenizer.decode(preferences["rejected_tokens"][5].as_py()) == "<s>fi</s>"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("raises", r"row 2 .*data\.preprocess raised ZeroDivisionError: .*zero"),
        ("wrong_type", r"row 0 .*data\.preprocess must return a row \(dict\) or None, not a string"),
        ("mixed", r"after data\.preprocess, .*row 2 .*column 'prompt' holds a number unlike the rows before"),
        ("nothing", r"data\.preprocess left none of the 6 rows of '.*rows\.jsonl'"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_function_does_wrong_is_named_with_its_row(section, tokenizer, function, says, streaming):
    options = {"streaming": True, "max_samples": 6} if streaming else {}
    with pytest.raises(DataError, match=says):
        load_prompts(section(function, **options), tokenizer, 99)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("my_rows:od", r"preprocess function `my_rows:od`: `my_rows` has no `od`\. Did you mean `odd`\?"),
        ("my_rows:constant", "is a int, not a function"),
        ("my_rows", "write it as `package.module:function`"),
        ("no_such_module:f", "there is no module `no_such_module`. Searched the working directory"),
        ("my_broken_rows:f", "importing `my_broken_rows` failed.*no_such_package"),
    ],
)
def test_a_function_that_cannot_be_found_is_a_configuration_error(section, tokenizer, path, says):
    wrong = section("odd").model_copy(update={"preprocess": path})
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        load_prompts(wrong, tokenizer, 99)
