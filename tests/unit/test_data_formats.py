"""Every form in which preferences and demonstrations are recorded: the pairs and tokens that come of it."""

import pytest
from data_rows import assistant, plain_tokenizer, user, write_jsonl

from rlhf_ray import schema
from rlhf_ray.config.data import DemonstrationDataSection, PreferenceDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.pairs import Pair, PairReader
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.demo.tokenizer import train_tokenizer
from rlhf_ray.errors import DataError

pytestmark = pytest.mark.unit

ABC = ["a", "b", "c"]


@pytest.fixture(scope="module")
def chat():
    return train_tokenizer(["Hello", "How are you?"])


@pytest.fixture(scope="module")
def plain():
    return plain_tokenizer()


@pytest.fixture
def write(tmp_path):
    return lambda *rows: write_jsonl(tmp_path / "rows.jsonl", rows)


def read(row, margin_column=None, **options):
    reader = PairReader(PreferenceDataSection(path="x", **options), row, margin_column=margin_column)
    return reader(row, lambda column: f"row 7, column '{column}'")


# --- ratings ---


@pytest.mark.parametrize("verdict", ["a", "A", " a ", "response_a", "model_a"])
def test_a_rating_puts_the_better_response_first(verdict):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "preference": verdict}
    assert read(row) == [Pair("p", "x", "y")]


def test_the_other_response_may_be_the_better_one():
    assert read({"prompt": "p", "response_a": "x", "response_b": "y", "preference": "b"}) == [Pair("p", "y", "x")]


@pytest.mark.parametrize("verdict", ["tie", "Tie (bothbad)", "both", "neither", "equal"])
def test_ties_are_left_out_or_kept_in_each_order(verdict):
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "preference": verdict}
    assert read(row) == []
    assert read(row, ties="keep") == [Pair("p", "x", "y"), Pair("p", "y", "x")]


def test_rated_conversations_hold_their_prompt():
    row = {"response_a": [user("p"), assistant("x")], "response_b": [user("p"), assistant("y")], "preference": "b"}
    assert read(row) == [Pair([user("p")], "y", "x")]


def test_the_columns_of_ratings_have_names_of_their_own_where_they_are_called_otherwise():
    names = {"first_column": "answer_1", "second_column": "answer_2", "preference_column": "winner"}
    assert read({"prompt": "p", "answer_1": "x", "answer_2": "y", "winner": "model_b"}, **names) == [
        Pair("p", "y", "x")
    ]


# --- rankings ---


def test_a_ranking_gives_every_pair_with_the_lower_rank_chosen():
    pairs = read({"prompt": "p", "responses": ABC, "ranking": [2, 1, 3]})
    assert pairs == [Pair("p", "b", "a"), Pair("p", "a", "c"), Pair("p", "b", "c")]


def test_scores_rank_the_highest_first_and_can_give_margins():
    row = {"prompt": "p", "responses": ABC, "scores": [0.5, 2, 0.5]}
    assert read(row) == [Pair("p", "b", "a"), Pair("p", "b", "c")]
    assert [pair.margin for pair in read(row, margin_column="scores")] == [1.5, 1.5]
    assert len(read(row, ties="keep")) == 4


def test_ranks_win_over_scores():
    assert read({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2], "scores": [1, 2]})[0].chosen == "a"


def test_k_responses_are_k_times_k_minus_1_halves_pairs():
    assert len(read({"prompt": "p", "responses": list("abcdefg"), "ranking": list(range(7))})) == 21


def test_ranked_responses_may_be_messages():
    responses = [[assistant("x")], [assistant("y")]]
    row = {"prompt": [user("p")], "responses": responses, "ranking": [2, 1]}
    assert read(row) == [Pair([user("p")], "y", "x")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"preference": "c"}, "column 'preference': is 'c'; known are a, b, tie"),
        ({"preference": None}, "column 'preference': is None"),
        ({"preference": 1}, "column 'preference': is 1"),
        ({"responses": ["x"], "ranking": [1]}, "column 'responses': holds a list, not two responses or more"),
        ({"responses": "x", "ranking": [1]}, "column 'responses': holds a string"),
        ({"responses": ["x", "y"], "ranking": [1]}, "column 'ranking': holds 1 numbers for 2 responses"),
        ({"responses": ["x", "y"], "ranking": 1}, "column 'ranking': holds a number for 2 responses"),
        ({"responses": ["x", "y"], "ranking": [1, "2"]}, "column 'ranking': holds '2' where a finite number"),
        ({"responses": ["x", "y"], "ranking": [1, True]}, "column 'ranking': holds True where"),
        ({"responses": ["x", "y"], "scores": [1, float("nan")]}, "column 'scores': holds nan where"),
        ({"responses": ["x", None], "ranking": [1, 2]}, r"column 'responses', response 1: holds nothing \(null\)"),
    ],
)
def test_wrong_judgements_are_explained(row, says):
    ratings = {"prompt": "p", "response_a": "x", "response_b": "y"} if "preference" in row else {"prompt": "p"}
    with pytest.raises(DataError, match=rf"row 7, {says}"):
        read(ratings | row)


def test_columns_of_no_form_are_answered_with_all_forms():
    says = (
        r"no column 'preference': required are 'chosen', 'rejected', or 'response_a', 'response_b', 'preference', or "
        r"'responses', 'ranking' \(or 'scores'\); found are 'prompt', 'response_a', 'response_b'"
    )
    with pytest.raises(DataError, match=says):
        read({"prompt": "p", "response_a": "x", "response_b": "y"})


# --- loading ---


def test_ratings_load_as_the_pairs_that_they_are(write, chat):
    pair = write({"prompt": "p", "chosen": "y", "rejected": "x"})
    expected = load_preferences(PreferenceDataSection(path=pair), chat).table
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "preference": verdict} for verdict in ("b", "tie")]
    loaded = load_preferences(PreferenceDataSection(path=write(*rows)), chat)
    assert loaded.table.equals(expected)
    assert "1 ties left out" in loaded.report.describe()


def test_rankings_load_with_their_margins(write, plain):
    path = write({"prompt": "a", "responses": ["b", "c", "d"], "scores": [1.0, 4.0, 2.0]})
    table = load_preferences(PreferenceDataSection(path=path), plain, margin_column="scores").table
    assert table["margin"].to_pylist() == [3.0, 1.0, 2.0]
    assert table["chosen_tokens"].to_pylist() == [[0, 2, 4, 1], [0, 2, 5, 1], [0, 2, 4, 1]]
    assert table["prompt_length"].to_pylist() == [2, 2, 2]


def test_a_margin_column_is_required_and_read(write, plain):
    path = write({"prompt": "a", "chosen": "b", "rejected": "c", "by": 2})
    assert load_preferences(PreferenceDataSection(path=path), plain, margin_column="by").table["margin"][0].as_py() == 2
    with pytest.raises(DataError, match="no column 'how_much'"):
        load_preferences(PreferenceDataSection(path=path), plain, margin_column="how_much")


def test_nothing_but_ties_is_refused(write, plain):
    path = write({"prompt": "p", "response_a": "x", "response_b": "y", "preference": "tie"})
    with pytest.raises(DataError, match=r"All 1 comparisons .* are ties\. Set data\.ties=keep"):
        load_preferences(PreferenceDataSection(path=path), plain)


@pytest.mark.parametrize("start", ["\n\nHuman:", "Human:"])
def test_a_transcript_may_lack_the_blank_line_before_it(write, chat, start):
    talk = f"{start} a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    path = write({"chosen": talk + " good", "rejected": talk + " bad"})
    (row,) = load_preferences(PreferenceDataSection(path=path), chat).table.to_pylist()
    text = chat.decode(row["chosen_tokens"])
    assert text == ("<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\ngood<|end|>")


# --- demonstrations ---


def test_text_is_learnt_whole(write, plain):
    loaded = load_demonstrations(DemonstrationDataSection(path=write({"text": "abc"})), plain)
    assert loaded.table.to_pylist() == [{"tokens": [0, 2, 3, 4, 1], "prompt_length": 1}]


def test_a_prompt_and_a_completion_win_over_text(write, plain):
    path = write({"text": "abc", "prompt": "a", "completion": "b"})
    (row,) = load_demonstrations(DemonstrationDataSection(path=path), plain).table.to_pylist()
    assert row["tokens"] == [0, 2, 3, 1]


@pytest.mark.parametrize("text", ["", "  ", None, 7])
def test_no_text_is_refused(write, plain, text):
    with pytest.raises(DataError, match=r"row 0 .*column 'text': there is no text"):
        load_demonstrations(DemonstrationDataSection(path=write({"text": text})), plain)


def test_trees_are_not_taken_for_text(write, plain):
    path = write({"message_id": "1", "parent_id": None, "role": "prompter", "text": "a"})
    with pytest.raises(DataError, match=r"message trees.*data\.messages_column=text"):
        load_demonstrations(DemonstrationDataSection(path=path), plain)


# --- every answer ---


def learnt(tokenizer, path, **options):
    """The text under the loss mask, its parts separated by |."""
    section = DemonstrationDataSection(path=path, **options)
    loaded = load_demonstrations(section, tokenizer, every_turn=True)
    assert loaded.table.schema.names == [*schema.DEMONSTRATIONS.names, schema.LOSS_MASK_COLUMN]
    (row,) = loaded.table.to_pylist()
    assert len(row["tokens"]) == len(row["loss_mask"])
    parts, previous = [], 0
    for token, learn in zip(row["tokens"], row["loss_mask"], strict=True):
        if learn:
            parts = parts if previous else [*parts, []]
            parts[-1].append(token)
        previous = learn
    return "|".join(tokenizer.decode(part) for part in parts)


def test_every_answer_is_learnt_with_its_end(write, chat):
    path = write({"messages": [user("How?"), assistant("Hello"), user("are"), assistant("you")]})
    assert learnt(chat, path) == "Hello<|end|>|you<|end|>"


@pytest.mark.parametrize("template", ["chatml", "llama2", "mistral", "alpaca"])
def test_every_answer_is_learnt_in_every_named_template(write, chat, template):
    path = write({"messages": [user("How?"), assistant("Hello"), user("are"), assistant("you")]})
    text = learnt(chat, path, chat_template=template)
    assert text.strip().startswith("Hello")
    assert text.endswith("you<|end|>")
    assert "How" not in text
    assert "are" not in text


def test_answers_of_a_transcript_are_learnt_without_a_template(write, plain):
    path = write({"messages": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"})
    assert learnt(plain, path).replace("Ġ", " ").split("|") == [" b", " d</s>"]


def test_a_cut_prompt_keeps_its_mask_in_step(write, plain):
    path = write({"messages": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"})
    whole = load_demonstrations(DemonstrationDataSection(path=path), plain, every_turn=True).table.to_pylist()[0]
    section = DemonstrationDataSection(path=path, max_tokens=len(whole["tokens"]) - 3, too_long="truncate")
    cut = load_demonstrations(section, plain, every_turn=True).table.to_pylist()[0]
    assert cut["loss_mask"][1:] == whole["loss_mask"][4:]
    assert cut["tokens"][1:] == whole["tokens"][4:]


def test_a_template_that_rewrites_earlier_turns_is_refused(write, chat):
    path = write({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]})
    kept = chat.chat_template
    chat.chat_template = "{% for m in messages %}{{ m['content'] if loop.last else '-' }}{% endfor %}"
    try:
        with pytest.raises(DataError, match=r"row 0 .*writes message 1 otherwise.*sft\.loss_on=completion"):
            learnt(chat, path)
    finally:
        chat.chat_template = kept
