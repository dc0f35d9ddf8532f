"""Conversations as datasets write them: ShareGPT, oasst, transcripts, preference pairs; and how they can be wrong."""

import pytest
from data_rows import assistant, plain_tokenizer, system, user, write_jsonl

from rlhf_ray.config.data import DemonstrationDataSection, PreferenceDataSection, PromptDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.demo.tokenizer import train_tokenizer
from rlhf_ray.errors import DataError

pytestmark = pytest.mark.unit

HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


@pytest.fixture(scope="module")
def chat():
    return train_tokenizer(["Hello", "How are you?"])


@pytest.fixture(scope="module")
def plain():
    return plain_tokenizer()


@pytest.fixture
def write(tmp_path):
    return lambda *rows: write_jsonl(tmp_path / "rows.jsonl", rows)


def prompts(path, tokenizer, **options):
    return load_prompts(PromptDataSection(path=path, **options), tokenizer, 999)


def said(speaker, text):
    return {"from": speaker, "value": text}


def wrote(role, text):
    return {"role": role, "text": text}


# --- chat messages in other forms ---


@pytest.mark.parametrize(
    "cell",
    [
        [said("system", "s"), said("human", "a"), said("gpt", "b"), said("human", "c")],
        [said("system", "s"), said("user", "a"), said("chatgpt", "b"), said("human", "c"), said("gpt", "d")],
        [wrote("system", "s"), wrote("prompter", "a"), wrote("assistant", "b"), wrote("prompter", "c")],
        {"from": ["system", "human", "gpt", "human"], "value": ["s", "a", "b", "c"]},
        [system("s"), {"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}, user("c")],
        [system("s"), user("a"), assistant("b"), user("c"), assistant("d"), assistant("e")],
    ],
)
def test_every_form_gives_the_same_messages_without_the_last_answer(write, chat, cell):
    (row,) = prompts(write({"conversations": cell}), chat, prompt_column="conversations").table.to_pylist()
    assert row["messages"] == [system("s"), user("a"), assistant("b"), user("c")]
    assert row["prompt"].endswith("<|user|>\nc<|end|>\n<|assistant|>\n")
    assert "conversations" not in row


def test_a_column_named_messages_becomes_what_was_rendered(write, chat):
    path = write({"messages": [user("a"), assistant("b")], "id": 7})
    (row,) = prompts(path, chat, prompt_column="messages", system_prompt="s").table.to_pylist()
    assert row["messages"] == [system("s"), user("a")]
    assert row["id"] == 7


def test_another_column_named_messages_is_renamed(write, chat, plain):
    path = write({"prompt": "a", "messages": "mine"})
    (row,) = prompts(path, chat).table.to_pylist()
    assert (row["messages"], row["dataset_messages"]) == ([user("a")], "mine")
    (row,) = prompts(path, plain).table.to_pylist()  # no template, no messages of ours
    assert row["messages"] == "mine"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ([], "holds list"),
        (None, r"nothing \(null\)"),
        ([said("human", "a"), said("parrot", "b")], "message 1: 'from' is 'parrot'; known are .*gpt, human"),
        ([said("human", "a"), said("gpt", None)], "message 1: needs a 'role' and a 'content'.*ShareGPT"),
        ([said(None, "a")], "message 0: needs a 'role'"),
        ([said("gpt", "a")], "no message of the user"),
        ([said("system", "a"), said("gpt", "b")], "no message of the user"),
    ],
)
def test_wrong_sharegpt_rows_are_explained(write, chat, cell, says):
    path = write({"conversations": [said("human", "x")]}, {"conversations": cell})
    with pytest.raises(DataError, match=rf"row 1 .*column 'conversations'.*{says}"):
        prompts(path, chat, prompt_column="conversations")


def test_sharegpt_conversations_are_demonstrations_too(write, chat):
    path = write({"conversations": [said("human", "a"), said("gpt", "b")]})
    by_sharegpt = load_demonstrations(DemonstrationDataSection(path=path, messages_column="conversations"), chat).table
    path = write({"messages": [user("a"), assistant("b")]})
    assert by_sharegpt.equals(load_demonstrations(DemonstrationDataSection(path=path), chat).table)


# --- message trees ---

TREE = [
    {"message_id": "1", "parent_id": None, "role": "prompter", "text": "a", "lang": "en"},
    {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "b", "lang": "en"},
    {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "B", "lang": "en"},
    {"message_id": "4", "parent_id": "3", "role": "prompter", "text": "c", "lang": "en"},
    {"message_id": "5", "parent_id": None, "role": "prompter", "text": "x", "lang": "de"},
]


def test_every_prompters_message_of_a_tree_is_a_prompt_with_what_came_before(write, chat):
    loaded = prompts(write(*TREE), chat, prompt_column="text")
    rows = loaded.table.select(["prompt_id", "messages", "lang"]).to_pylist()
    assert rows == [
        {"prompt_id": 0, "messages": [user("a")], "lang": "en"},
        {"prompt_id": 3, "messages": [user("a"), assistant("B"), user("c")], "lang": "en"},
        {"prompt_id": 4, "messages": [user("x")], "lang": "de"},
    ]
    assert (loaded.report.rows.read, loaded.report.rows.other_messages, loaded.report.rows.left_out) == (5, 2, 0)
    assert "2 other messages of the trees" in loaded.report.describe()


def test_an_answer_may_stand_before_what_it_answers(write, chat):
    table = prompts(write(*reversed(TREE)), chat, prompt_column="text").table
    assert [user("a"), assistant("B"), user("c")] in table["messages"].to_pylist()


def test_max_samples_counts_prompts_of_a_tree(write, chat):
    loaded = prompts(write(*TREE), chat, prompt_column="text", max_samples=2, shuffle=False)
    assert loaded.table["prompt_id"].to_pylist() == [0, 3]
    assert "1 left out by max_samples" in loaded.report.describe()


def test_every_assistants_message_of_a_tree_is_a_demonstration(write, chat):
    table = load_demonstrations(DemonstrationDataSection(path=write(*TREE), messages_column="text"), chat).table
    texts = [chat.decode(tokens) for tokens in table["tokens"].to_pylist()]
    assert texts == [f"<|user|>\na<|end|>\n<|assistant|>\n{answer}<|end|>" for answer in "bB"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"message_id": "6", "parent_id": "9", "role": "prompter", "text": "y"},
            "row 5 .*answers message '9', which is",
        ),
        ({"message_id": "6", "parent_id": "6", "role": "prompter", "text": "y"}, "row 5 .*among the answers to itself"),
        (
            {"message_id": "4", "parent_id": None, "role": "prompter", "text": "y"},
            "row 5 .*'4' is also that of .*row 3 ",
        ),
        ({"message_id": "6", "parent_id": None, "role": "parrot", "text": "y"}, "row 5 .*role is 'parrot'"),
        ({"message_id": "6", "parent_id": None, "role": None, "text": "y"}, "row 5 .*role is None"),
        ({"message_id": "6", "parent_id": None, "role": "prompter", "text": None}, "row 5 .*has no text"),
    ],
)
def test_wrong_trees_are_explained(write, chat, row, says):
    with pytest.raises(DataError, match=says):
        prompts(write(*TREE, row), chat, prompt_column="text")


def test_a_tree_without_a_prompt_is_refused(write, chat):
    with pytest.raises(DataError, match="none of its 1 messages is the user's"):
        prompts(write({**TREE[1], "parent_id": None}), chat, prompt_column="text")


# --- transcripts ---


def test_a_transcript_is_text_without_a_template_and_messages_with_one(write, chat, plain):
    path = write({"prompt": HH}, {"prompt": HH + " d"}, {"prompt": HH.removesuffix("\n\nAssistant:")})
    assert prompts(path, plain).table["prompt"].to_pylist() == [HH] * 3
    conversation = [user("a"), assistant("b"), user("c")]
    assert prompts(path, chat).table["messages"].to_pylist() == [conversation] * 3


def test_transcripts_are_demonstrations(write, chat, plain):
    section = DemonstrationDataSection(path=write({"messages": HH + " d"}))
    (row,) = load_demonstrations(section, plain).table.to_pylist()
    assert row["tokens"][: row["prompt_length"]] == plain(HH)["input_ids"]
    assert plain.decode(row["tokens"][row["prompt_length"] :]).endswith("d</s>")
    (row,) = load_demonstrations(section, chat).table.to_pylist()
    assert chat.decode(row["tokens"]).endswith("<|user|>\nc<|end|>\n<|assistant|>\nd<|end|>")


@pytest.mark.parametrize("text", [HH, "\n\nHuman: a"])
def test_a_transcript_without_a_last_answer_is_no_demonstration(write, chat, plain, text):
    section = DemonstrationDataSection(path=write({"messages": text}))
    with pytest.raises(DataError, match=r"row 0 .*must end with what the assistant says"):
        load_demonstrations(section, plain)
    with pytest.raises(DataError, match=r"row 0 .*must end with the assistant's message, not 'user'"):
        load_demonstrations(section, chat)


# --- prompts and pairs of preference files ---


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (HH + " good", HH + " bad", HH),
        (HH + " d\n\nHuman: e\n\nAssistant: f", HH + " d", HH),
        ("Q: two plus two? A: three or", "Q: two plus two? A: thirteen", "Q: two plus two? A:"),
        ("Q:\nyes", "Q:\nno", "Q:\n"),
        ("say yes", "say yes please", "say"),
    ],
)
def test_the_prompt_is_what_chosen_and_rejected_share(write, plain, chosen, rejected, prompt):
    path = write({"chosen": chosen, "rejected": rejected, "level": 3})
    (row,) = prompts(path, plain).table.to_pylist()
    assert row["prompt"] == prompt
    assert (row["chosen"], row["rejected"], row["level"]) == (chosen, rejected, 3)


def test_the_prompt_is_what_two_conversations_share(write, chat):
    start = [user("a"), assistant("b"), user("c")]
    pairs = [
        {"chosen": [*start, assistant("d")], "rejected": [*start, assistant("e")]},
        {"chosen": [*start, assistant("d"), user("f"), assistant("g")], "rejected": [*start, assistant("e")]},
        {"chosen": [*start, assistant("d")], "rejected": [*start, assistant("d")]},
        {"chosen": [*start, assistant("d")], "rejected": [user("a"), assistant("b"), user("x"), assistant("d")]},
    ]
    shared = prompts(write(*pairs), chat).table["messages"].to_pylist()
    assert shared == [start, start, start, [user("a")]]


def test_a_prompt_column_wins_over_what_a_pair_shares(write, plain):
    path = write({"prompt": "abc", "chosen": "d e", "rejected": "d f"})
    assert prompts(path, plain).table["prompt"].to_pylist() == ["abc"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "a b", "rejected": "c d"}, "column 'rejected': begins otherwise than the chosen one"),
        ({"chosen": "a b", "rejected": None}, "column 'rejected': holds null, but the chosen one holds a string"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "column 'rejected': the conversation has no message of"),
        ({"chosen": [user("a")], "rejected": []}, "column 'rejected': holds list"),
    ],
)
def test_pairs_without_a_prompt_are_explained(write, chat, row, says):
    with pytest.raises(DataError, match=says):
        prompts(write(row), chat)


def test_another_prompt_column_is_not_taken_from_the_pair(write, chat):
    with pytest.raises(DataError, match=r"no column 'question'.*found are 'chosen', 'rejected'"):
        prompts(write({"chosen": "a b", "rejected": "a c"}), chat, prompt_column="question")


@pytest.mark.parametrize("tokenizer_name", ["chat", "plain"])
def test_transcripts_make_pairs_that_share_their_prompt(request, write, tokenizer_name):
    tokenizer = request.getfixturevalue(tokenizer_name)
    path = write({"chosen": HH + " d", "rejected": HH + " e"})
    (row,) = load_preferences(PreferenceDataSection(path=path), tokenizer).table.to_pylist()
    prompt = prompts(path, tokenizer).table["prompt_tokens"][0].as_py()
    separator = "" if tokenizer_name == "chat" else " "
    for column, answer in (("chosen_tokens", "d"), ("rejected_tokens", "e")):
        assert row[column][: len(prompt)] == prompt
        answer_tokens = tokenizer(separator + answer, add_special_tokens=False)["input_ids"]
        assert row[column][len(prompt) :] == [*answer_tokens, tokenizer.eos_token_id]


def test_texts_that_begin_alike_make_pairs(write, chat):
    by_columns = write({"prompt": "Which?", "chosen": "This", "rejected": "That"})
    table = load_preferences(PreferenceDataSection(path=by_columns), chat).table
    alike = write({"chosen": "Which? This", "rejected": "Which? That"})
    assert load_preferences(PreferenceDataSection(path=alike), chat).table.equals(table)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": HH + " d", "rejected": HH.replace("c", "x") + " d"}, "answers another conversation.*preprocess"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "column 'chosen': holds the answer alone"),
        ({"chosen": "a b", "rejected": ["a"]}, "holds a list, but the chosen one holds a string"),
    ],
)
@pytest.mark.parametrize("tokenizer_name", ["chat", "plain"])
def test_wrong_pairs_are_explained(request, write, tokenizer_name, row, says):
    with pytest.raises(DataError, match=says):
        load_preferences(PreferenceDataSection(path=write(row)), request.getfixturevalue(tokenizer_name))
