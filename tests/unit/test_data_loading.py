"""Prompts, demonstrations and preferences: the exact tokens, and a clear error for every bad row."""

import pyarrow as pa
import pytest
from data_rows import assistant, plain_tokenizer, user, write_jsonl

from rlhf_ray import schema
from rlhf_ray.config.data import DemonstrationDataSection, PreferenceDataSection, PromptDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.demo.tokenizer import train_tokenizer
from rlhf_ray.errors import DataError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def chat_tokenizer():
    return train_tokenizer(["def close(file)", "Close the file and return nothing."])


@pytest.fixture(scope="module")
def bos_tokenizer():
    return plain_tokenizer()


@pytest.fixture
def write(tmp_path):
    return lambda *rows: write_jsonl(tmp_path / "rows.jsonl", rows)


# --- prompts ---


def test_a_string_becomes_one_user_message_with_generation_prompt(write, chat_tokenizer):
    loaded = load_prompts(PromptDataSection(path=write({"prompt": "close"})), chat_tokenizer, 99)
    assert loaded.table.schema.equals(pa.schema([*schema.PROMPTS, pa.field("messages", schema.MESSAGES)]))
    (row,) = loaded.table.to_pylist()
    assert row["messages"] == [user("close")]
    assert row["prompt"] == "<|user|>\nclose<|end|>\n<|assistant|>\n"
    assert chat_tokenizer.decode(row["prompt_tokens"]) == row["prompt"]
    assert row["prompt_tokens"][0] == chat_tokenizer.convert_tokens_to_ids("<|user|>")


def test_messages_and_string_give_the_same_prompt(write, chat_tokenizer):
    section = PromptDataSection(path=write({"text": "close", "chat": [user("close")]}), prompt_column="text")
    by_string = load_prompts(section, chat_tokenizer, 99).table
    by_messages = load_prompts(section.model_copy(update={"prompt_column": "chat"}), chat_tokenizer, 99).table
    assert by_string["prompt_tokens"].to_pylist() == by_messages["prompt_tokens"].to_pylist()


def test_the_system_prompt_comes_first_unless_the_row_has_its_own(write, chat_tokenizer):
    path = write({"prompt": [user("x")]}, {"prompt": [{"role": "system", "content": "mine"}, user("x")]})
    texts = load_prompts(PromptDataSection(path=path, system_prompt="be brief"), chat_tokenizer, 99).table["prompt"]
    assert texts[0].as_py().startswith("<|system|>\nbe brief<|end|>\n<|user|>\nx")
    assert texts[1].as_py().startswith("<|system|>\nmine<|end|>\n<|user|>\nx")


def test_prompt_ids_are_source_rows_and_other_columns_travel(write, chat_tokenizer):
    rows = [{"prompt": "x" * 50, "answer": 1}, {"prompt": "x", "answer": 2, "response": "r", "reward/a": 0.5}]
    loaded = load_prompts(PromptDataSection(path=write(*rows), too_long="drop"), chat_tokenizer, 20)
    (row,) = loaded.table.to_pylist()
    assert row["prompt_id"] == 1
    assert row["answer"] == 2
    assert (row["dataset_response"], row["dataset_reward/a"]) == ("r", 0.5)
    assert (
        len(set(schema.sample_schema(loaded.table.schema).names)) == len(schema.SAMPLES) + 4
    )  # messages, answer and the two renamed ones


def test_max_samples_draws_rows_of_the_source_and_keeps_their_ids(write, chat_tokenizer):
    path = write(*({"prompt": str(number)} for number in range(100)))
    section = PromptDataSection(path=path, max_samples=10)
    loaded = load_prompts(section, chat_tokenizer, 99)
    ids = loaded.table["prompt_id"].to_pylist()
    assert len(ids) == 10
    assert ids == sorted(ids) != list(range(10))
    assert all(f"\n{row['prompt_id']}<" in row["prompt"] for row in loaded.table.to_pylist())
    assert "90 left out by max_samples" in loaded.report.describe()
    unshuffled = load_prompts(section.model_copy(update={"shuffle": False}), chat_tokenizer, 99)
    assert unshuffled.table["prompt_id"].to_pylist() == list(range(10))
    assert load_prompts(section, chat_tokenizer, 99, path=path).table.num_rows == 100


def test_held_out_prompts_come_from_their_own_split(tmp_path, chat_tokenizer):
    write_jsonl(tmp_path / "train-0.jsonl", [{"prompt": "a"}])
    write_jsonl(tmp_path / "test-0.jsonl", [{"prompt": "b"}])
    section = PromptDataSection(path=str(tmp_path), eval_path=str(tmp_path), eval_split="test")
    assert load_prompts(section, chat_tokenizer, 99).table["messages"].to_pylist() == [[user("a")]]
    held_out = load_prompts(section, chat_tokenizer, 99, path=section.eval_path).table
    assert held_out["messages"].to_pylist() == [[user("b")]]


def test_plain_text_gets_the_tokenizers_bos_once(write, bos_tokenizer):
    path = write({"prompt": "abc"}, {"prompt": "<s>abc"})
    table = load_prompts(PromptDataSection(path=path), bos_tokenizer, 99).table
    assert table["prompt_tokens"].to_pylist() == [[0, 2, 3, 4], [0, 2, 3, 4]]


def test_a_template_that_writes_bos_gets_no_second_one(write, bos_tokenizer):
    bos_tokenizer.chat_template = "<s>{{ messages[0]['content'] }}"
    try:
        table = load_prompts(PromptDataSection(path=write({"prompt": "abc"})), bos_tokenizer, 99).table
    finally:
        bos_tokenizer.chat_template = None
    assert table["prompt_tokens"].to_pylist() == [[0, 2, 3, 4]]


def test_chat_template_none_leaves_text_as_it_is(write, chat_tokenizer):
    section = PromptDataSection(path=write({"prompt": "close"}), chat_template="none", system_prompt="Be brief.")
    assert load_prompts(section, chat_tokenizer, 99).table["prompt"].to_pylist() == ["Be brief.\n\nclose"]


def test_too_long_prompts_error_drop_or_truncate(write, bos_tokenizer):
    path = write({"prompt": "abc"}, {"prompt": "abcdefgh"}, {"prompt": "abcdefghij"})
    with pytest.raises(DataError, match=r"row 1 .*: 9 tokens, over the limit of 5 .*2 of 3 rows.*'drop'.*'truncate'"):
        load_prompts(PromptDataSection(path=path), bos_tokenizer, 5)

    dropped = load_prompts(PromptDataSection(path=path, too_long="drop"), bos_tokenizer, 5)
    assert dropped.table["prompt"].to_pylist() == ["abc"]
    assert (dropped.report.rows.read, dropped.report.kept, dropped.report.dropped_too_long) == (3, 1, 2)
    assert "2 dropped as too long" in dropped.report.describe()

    cut = load_prompts(PromptDataSection(path=path, too_long="truncate"), bos_tokenizer, 5)
    assert cut.table["prompt"].to_pylist() == ["abc", "<s>efgh", "<s>ghij"]  # the end stays, and so does the BOS
    assert cut.table["prompt_tokens"].to_pylist()[1] == [0, 6, 7, 8, 9]
    assert (cut.report.truncated, cut.report.dropped_too_long, cut.report.longest_tokens) == (2, 0, 5)


def test_the_sections_own_limit_applies_where_it_is_smaller(write, bos_tokenizer):
    section = PromptDataSection(path=write({"prompt": "abcdef"}), max_prompt_tokens=3)
    with pytest.raises(DataError, match="limit of 3"):
        load_prompts(section, bos_tokenizer, 50)
    with pytest.raises(DataError, match="limit of 2"):
        load_prompts(section.model_copy(update={"max_prompt_tokens": 50}), bos_tokenizer, 2)


def test_dropping_every_row_is_an_error(write, bos_tokenizer):
    with pytest.raises(DataError, match="All 1 rows are longer"):
        load_prompts(PromptDataSection(path=write({"prompt": "abc"}), too_long="drop"), bos_tokenizer, 2)


def test_a_missing_column_lists_what_was_found(write, chat_tokenizer):
    with pytest.raises(DataError, match=r"no column 'prompt'.*found are 'question', 'answer'"):
        load_prompts(PromptDataSection(path=write({"question": "x", "answer": "y"})), chat_tokenizer, 99)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (None, r"row 1 .*column 'prompt'.*nothing \(null\)"),
        ([], r"row 1 .*holds list"),
        ([{"role": "user", "content": None}], r"row 1 .*'role' and a 'content'"),
        ([{"role": None, "content": "x"}], r"row 1 .*'role' and a 'content'"),
    ],
)
def test_a_wrong_cell_is_named_with_its_row(write, chat_tokenizer, bad, says):
    path = write({"prompt": [user("x")]}, {"prompt": bad})
    with pytest.raises(DataError, match=says):
        load_prompts(PromptDataSection(path=path), chat_tokenizer, 99)


def test_a_column_of_numbers_is_refused(write, chat_tokenizer):
    with pytest.raises(DataError, match=r"row 0 .*int '7' where a string"):
        load_prompts(PromptDataSection(path=write({"prompt": 7})), chat_tokenizer, 99)


def test_messages_without_a_template_are_refused(write, bos_tokenizer):
    with pytest.raises(DataError, match=r"row 0 .*without a chat template"):
        load_prompts(PromptDataSection(path=write({"prompt": [user("abc")]})), bos_tokenizer, 99)


def test_what_the_template_refuses_is_named_with_its_row(write, bos_tokenizer):
    bos_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(DataError, match=r"row 0 .*refuses these messages: roles must alternate"):
            load_prompts(PromptDataSection(path=write({"prompt": "abc"})), bos_tokenizer, 99)
    finally:
        bos_tokenizer.chat_template = None


def test_an_empty_prompt_without_any_token_is_refused(write, chat_tokenizer):
    section = PromptDataSection(path=write({"prompt": "x"}, {"prompt": ""}), chat_template="none")
    with pytest.raises(DataError, match=r"row 1 .*the prompt is empty"):
        load_prompts(section, chat_tokenizer, 99)


# --- demonstrations ---


def test_a_demonstration_is_the_rollouts_prompt_then_response_then_eos(write, chat_tokenizer):
    path = write({"prompt": "close", "completion": "Close the file."})
    prompt = load_prompts(PromptDataSection(path=path), chat_tokenizer, 99).table["prompt_tokens"][0].as_py()
    loaded = load_demonstrations(DemonstrationDataSection(path=path), chat_tokenizer)
    assert loaded.table.schema.equals(schema.DEMONSTRATIONS)
    (row,) = loaded.table.to_pylist()
    assert row["tokens"][: row["prompt_length"]] == prompt
    assert chat_tokenizer.decode(row["tokens"][row["prompt_length"] :]) == "Close the file.<|end|>"


def test_messages_completions_and_conversations_agree(write, chat_tokenizer):
    split = write({"prompt": [user("x")], "completion": [assistant("Close it.")]})
    by_columns = load_demonstrations(DemonstrationDataSection(path=split), chat_tokenizer).table
    whole = write({"messages": [user("x"), assistant("Close it.")]})
    assert load_demonstrations(DemonstrationDataSection(path=whole), chat_tokenizer).table.equals(by_columns)


def test_a_response_that_ends_with_eos_gets_no_second_one(write, bos_tokenizer):
    path = write({"prompt": "ab", "completion": "cd</s>"})
    loaded = load_demonstrations(DemonstrationDataSection(path=path), bos_tokenizer)
    assert loaded.table.to_pylist() == [{"tokens": [0, 2, 3, 4, 5, 1], "prompt_length": 3}]


def test_a_long_demonstration_loses_the_start_of_its_prompt_never_its_response(write, bos_tokenizer):
    path = write({"prompt": "abcdef", "completion": "gh"}, {"prompt": "a", "completion": "bcdefghij"})
    section = DemonstrationDataSection(path=path, max_tokens=6)
    with pytest.raises(DataError, match=r"row 0 .*: 10 tokens.*data\.max_tokens"):
        load_demonstrations(section, bos_tokenizer)
    loaded = load_demonstrations(section.model_copy(update={"too_long": "truncate"}), bos_tokenizer)
    assert loaded.table.to_pylist() == [{"tokens": [0, 6, 7, 8, 9, 1], "prompt_length": 3}]
    assert (loaded.report.truncated, loaded.report.dropped_too_long) == (1, 1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x"}, "no column 'completion'"),
        ({"prompt": "x", "completion": None}, r"column 'completion'.*nothing \(null\)"),
        ({"prompt": "x", "completion": [user("a"), assistant("b")]}, "2 chat messages where the assistant's answer"),
        ({"messages": [user("x")]}, "must end with the assistant's message, not 'user'"),
        ({"messages": "x"}, r"column 'messages': holds str 'x'"),
    ],
)
def test_wrong_demonstrations_are_explained(write, chat_tokenizer, row, says):
    with pytest.raises(DataError, match=says):
        load_demonstrations(DemonstrationDataSection(path=write(row)), chat_tokenizer)


# --- preferences ---


def test_pairs_share_their_prompt_and_end_with_eos(write, chat_tokenizer):
    path = write({"prompt": [user("x")], "chosen": "Close it.", "rejected": "Close"})
    loaded = load_preferences(PreferenceDataSection(path=path), chat_tokenizer)
    assert loaded.table.schema.equals(schema.PREFERENCES)
    (row,) = loaded.table.to_pylist()
    assert chat_tokenizer.decode(row["chosen_tokens"]) == "<|user|>\nx<|end|>\n<|assistant|>\nClose it.<|end|>"
    assert chat_tokenizer.decode(row["rejected_tokens"]) == "<|user|>\nx<|end|>\n<|assistant|>\nClose<|end|>"


def test_whole_conversations_need_no_prompt_column(write, chat_tokenizer):
    columns = write({"prompt": [user("x")], "chosen": [assistant("good")], "rejected": [assistant("bad")]})
    by_columns = load_preferences(PreferenceDataSection(path=columns), chat_tokenizer).table
    whole = write({"chosen": [user("x"), assistant("good")], "rejected": [user("x"), assistant("bad")]})
    assert load_preferences(PreferenceDataSection(path=whole), chat_tokenizer).table.equals(by_columns)


def test_a_long_pair_is_cut_equally(write, bos_tokenizer):
    path = write({"prompt": "abcdef", "chosen": "gh", "rejected": "i"})
    section = PreferenceDataSection(path=path, max_tokens=6, too_long="truncate")
    (row,) = load_preferences(section, bos_tokenizer).table.to_pylist()
    assert row == {
        "chosen_tokens": [0, 6, 7, 8, 9, 1],
        "rejected_tokens": [0, 6, 7, 10, 1],
        "prompt_length": 3,
        "margin": None,
    }


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x", "chosen": "y"}, "no column 'rejected'"),
        ({"chosen": "y", "rejected": "z"}, "there is no column of prompts"),
        ({"prompt": "x", "chosen": "y", "rejected": None}, "column 'rejected'.*null"),
        (
            {"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]},
            "answers another conversation",
        ),
    ],
)
def test_wrong_pairs_are_explained(write, chat_tokenizer, row, says):
    with pytest.raises(DataError, match=says):
        load_preferences(PreferenceDataSection(path=write(row)), chat_tokenizer)
