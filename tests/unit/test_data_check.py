"""`rlhf-ray data check`: every kind of malformed row is found, with its line and the reason; sound rows are not."""

import json

import pytest
from click.testing import CliRunner
from data_rows import assistant, system, user, write_jsonl

from rlhf_ray.cli.main import main
from rlhf_ray.data.check import check, check_leakage
from rlhf_ray.data.findings import ERRORS, WARNINGS
from rlhf_ray.data.walk import find_section
from rlhf_ray.demo.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

GOOD = {"prompt": "Which one?", "chosen": "This one.", "rejected": "None."}
TALK = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
RATING = {"prompt": "p", "response_a": "x", "response_b": "y"}
RANKED = {"prompt": "p", "responses": ["x", "y"]}


def checked(path, kind=None, tokenizer=None, **overrides):
    kind, section = find_section(str(path), overrides, kind)
    return check(section, kind, tokenizer)


def pair(prompt="p", chosen="good", rejected="bad", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


#: (name, a row as it stands in the file, kind of the finding, what its reason says)
MALFORMED_PAIRS = [
    ("no JSON", "not json", "unreadable", "malformed JSON (Expecting value at character 1)"),
    ("cut off", '{"prompt": "a", "chosen": "b', "unreadable", "Unterminated string"),
    ("two objects on a line", '{"a": 1} {"b": 2}', "unreadable", "Extra data at character 10"),
    ("single quotes", "{'prompt': 'a'}", "unreadable", "malformed JSON"),
    ("not UTF-8", b'{"prompt": "\xff", "chosen": "b", "rejected": "c"}', "unreadable", "not UTF-8 text"),
    ("too deep", "[" * 100_000, "unreadable", "malformed JSON"),
    ("a list", "[1, 2]", "unreadable", "holds a list where an object with columns is needed"),
    ("a string", '"text"', "unreadable", "holds a string where"),
    ("a number", "7", "unreadable", "holds a number where"),
    ("null", "null", "unreadable", "holds null where"),
    ("no columns", {}, "missing column", "found are . Set"),
    ("no rejected", {"prompt": "a", "chosen": "b"}, "missing column", "no column 'rejected': required are 'chosen', "),
    ("no chosen", {"prompt": "a", "rejected": "b"}, "missing column", "no column 'chosen'"),
    ("another name", {"question": "a", "answer": "b"}, "missing column", "found are 'question', 'answer'"),
    ("no preference", RATING, "missing column", "no column 'preference'"),
    ("no ranking", RANKED, "missing column", "no column 'ranking'"),
    ("no prompt in it", {"chosen": "a b", "rejected": "c d"}, "malformed", "begins otherwise than the chosen one"),
    ("null chosen", pair(chosen=None), "malformed", "column 'chosen': holds nothing (null)"),
    ("null prompt", pair(prompt=None), "malformed", "column 'prompt': holds nothing (null)"),
    ("number as text", pair(rejected=7), "malformed", "column 'rejected': holds int '7'"),
    ("empty list", pair(chosen=[]), "malformed", "column 'chosen': holds list"),
    ("no role", pair(chosen=[{"content": "x"}]), "malformed", "message 0: needs a 'role' and a 'content'"),
    ("no content", pair(chosen=[{"role": "assistant"}]), "malformed", "message 0: needs a 'role' and a 'content'"),
    ("unknown speaker", pair(prompt=[{"from": "parrot", "value": "x"}]), "malformed", "'from' is 'parrot'"),
    ("user answers", pair(chosen=[user("x")]), "malformed", "must end with the assistant's message, not 'user'"),
    ("no user", pair(prompt=[system("x")]), "malformed", "no message of the user to respond to"),
    (
        "other prompts",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
        "malformed",
        "answers another conversation than the chosen one does",
    ),
    ("text and messages", {"chosen": "a b", "rejected": [user("a")]}, "malformed", "but the chosen one holds a string"),
    ("no last answer", {"chosen": TALK, "rejected": TALK + " x"}, "malformed", "must end with the assistant's message"),
    (
        "transcripts part",
        {"chosen": TALK + " x", "rejected": TALK.replace("c", "d") + " x"},
        "malformed",
        "another con",
    ),
    ("unknown verdict", RATING | {"preference": "left"}, "malformed", "column 'preference': is 'left'; known are a, b"),
    ("ranks missing", RANKED | {"ranking": [1]}, "malformed", "holds 1 numbers for 2 responses"),
    ("rank as text", RANKED | {"ranking": [1, "two"]}, "malformed", "holds 'two' where a finite number is needed"),
    ("not a score", '{"prompt": "p", "responses": ["x", "y"], "scores": [1, NaN]}', "malformed", "holds nan where"),
    ("one response", {"prompt": "p", "responses": ["x"], "ranking": [1]}, "malformed", "not two responses or more"),
    (
        "ranked null",
        {"prompt": "p", "responses": ["x", None], "ranking": [1, 2]},
        "malformed",
        "response 1: holds noth",
    ),
    ("empty response", pair(chosen=""), "empty", "a response is empty"),
    ("blank response", pair(rejected=" \n"), "empty", "a response is empty"),
    ("empty prompt", pair(prompt=""), "empty", "the prompt is empty"),
    ("empty message", pair(prompt=[user("a"), assistant(" "), user("b")]), "empty", "message 1 (assistant) is empty"),
    ("identical", pair(chosen="same", rejected="same"), "identical", "chosen and rejected are the same"),
    ("identical but for space", pair(chosen="same", rejected=" same\n"), "identical", "the same"),
    (
        "half a character",
        '{"prompt": "p", "chosen": "\\ud83d", "rejected": "x"}',
        "encoding",
        "half a character (U+D83D)",
    ),
    ("NUL", pair(chosen="a\x00b"), "encoding", "a response holds a NUL character"),
    ("lost characters", pair(prompt="caf\ufffd"), "damaged text", "the prompt holds U+FFFD"),
    ("speaks for the human", pair(chosen="yes\n\nHuman: no"), "turns", "goes on to speak for the human"),
    ("user twice", pair(prompt=[user("a"), user("b")]), "turns", "messages 0 and 1 are both the user's"),
    ("late system", pair(prompt=[user("a"), system("b"), user("c")]), "turns", "message 1 is the system's"),
    ("tie", RATING | {"preference": "tie"}, "tie", "neither response was judged better"),
    ("ranked alike", RANKED | {"ranking": [1, 1]}, "tie", "neither response"),
    ("duplicate", GOOD, "duplicate", "the same as line 1"),
    ("contradiction", pair("Which one?", "None.", "This one."), "contradiction", "line 1 prefers the other"),
]


def raw(row):
    text = row if isinstance(row, str | bytes) else json.dumps(row)
    return text if isinstance(text, bytes) else text.encode()


@pytest.mark.parametrize(
    ("row", "kind", "says"), [case[1:] for case in MALFORMED_PAIRS], ids=[c[0] for c in MALFORMED_PAIRS]
)
def test_a_malformed_pair_is_found_with_its_line_and_reason(tmp_path, row, kind, says):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([raw(GOOD), b"", raw(row), raw(pair("another", "yes", "no"))]))
    findings = checked(path).findings
    assert findings.counts == {kind: 1}
    (finding,) = findings.kept[kind]
    assert (finding.number, finding.kind) == (3, kind)
    assert says in finding.reason
    assert str(path) not in finding.reason  # the line number says where


def test_all_of_them_are_found_in_one_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([raw(GOOD), *(raw(case[1]) for case in MALFORMED_PAIRS)]))
    report = checked(path)
    found = {finding["number"] for finding in report.as_dict()["findings"]}
    assert found == set(range(2, len(MALFORMED_PAIRS) + 2))
    assert report.findings.errors + report.findings.warnings >= len(MALFORMED_PAIRS)


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"messages": [user("a")]}, "malformed", "must end with the assistant's message"),
        ({"messages": []}, "malformed", "holds list"),
        ({"messages": [assistant("a")]}, "empty", "nothing comes before the response"),
        (
            {"prompt": "a"},
            "missing column",
            "no column messages, or prompt and completion, or text; found are 'prompt'",
        ),
        ({"prompt": "a", "completion": None}, "malformed", "column 'completion': holds nothing"),
        ({"prompt": "a", "completion": ""}, "empty", "a response is empty"),
        ({"text": 7}, "malformed", "column 'text': holds 7 where text is needed"),
        ({"text": " "}, "empty", "a response is empty"),
    ],
)
def test_malformed_demonstrations_are_found(tmp_path, row, kind, says):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}, row])
    findings = checked(path, "demonstrations").findings
    assert findings.counts == {kind: 1}
    assert findings.kept[kind][0].number == 2
    assert says in findings.kept[kind][0].reason


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"chosen": TALK + " x", "rejected": TALK + " y"},
        {"chosen": [user("p"), assistant("x")], "rejected": [user("p"), assistant("y")]},
        RATING | {"preference": "b"},
        {"prompt": "p", "responses": ["x", "y", "z"], "ranking": [3, 1, 2]},
        {"prompt": [system("s"), user("p")], "chosen": [assistant("x")], "rejected": [assistant("y")], "id": 7},
    ],
)
def test_sound_preferences_of_every_form_pass(tmp_path, row):
    report = checked(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert (report.kind, report.rows, dict(report.findings.counts)) == ("preferences", 1, {})


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (GOOD, "preferences"),
        ({"messages": [user("a"), assistant("b")]}, "demonstrations"),
        ({"prompt": "a", "completion": "b"}, "demonstrations"),
        ({"text": "a"}, "demonstrations"),
        ({"prompt": "a", "answer": "b"}, "prompts"),
    ],
)
def test_the_columns_tell_the_kind(tmp_path, row, kind):
    assert checked(write_jsonl(tmp_path / "rows.jsonl", ["?", row])).kind == kind


def test_parquet_rows_are_counted_from_0(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([GOOD, pair(chosen=None), GOOD]), path)
    report = checked(path)
    assert report.unit == "row"
    assert report.findings.kept["malformed"][0].number == 1
    assert report.findings.kept["duplicate"][0] == (2, "duplicate", "the same as row 0.")


def test_a_prompt_on_both_sides_leaks(tmp_path):
    training = checked(write_jsonl(tmp_path / "a.jsonl", [pair("x"), pair("y")]))
    held_out = checked(write_jsonl(tmp_path / "b.jsonl", [pair("z"), pair("y", "else", "what")]))
    check_leakage(training, held_out)
    (finding,) = held_out.findings.kept["leakage"]
    assert (finding.number, finding.reason) == (2, f"its prompt is also that of line 2 of '{training.path}'.")


def test_a_tokenizer_measures_rows_and_asks_the_template(tmp_path):
    tokenizer = train_tokenizer(["Which one? This one."])
    long = pair(chosen="word " * 50)
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, long, pair(prompt=[user("a"), user("b")])])
    findings = checked(path, None, tokenizer, max_tokens=64).findings
    assert [finding.number for finding in findings.kept["too long"]] == [2]
    assert "over the limit of 64" in findings.kept["too long"][0].reason
    strict = checked(path, None, tokenizer, max_tokens=640, chat_template="llama2").findings
    assert "must take turns" in strict.kept["template"][0].reason
    assert "too long" not in strict.counts


def test_what_a_tokenizer_cannot_take_is_not_handed_to_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "chosen": "\\ud83d", "rejected": "x"}\n')
    assert checked(path, None, train_tokenizer(["x"])).findings.counts == {"encoding": 1}


def test_every_kind_is_an_error_or_a_warning():
    kinds = {case[2] for case in MALFORMED_PAIRS}
    assert kinds <= {*ERRORS, *WARNINGS}
    assert not {*ERRORS} & {*WARNINGS}
    assert len(MALFORMED_PAIRS) >= 30


# --- the command ---


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def test_the_command_fails_on_errors_and_writes_the_report(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, pair(chosen=None)])
    result = run("check", path, "--report", tmp_path / "report.json")
    assert result.exit_code == 2
    assert "line 2: column 'chosen': holds nothing (null)" in result.output
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert (report["errors"], report["warnings"], report["kind"], report["rows"]) == (1, 0, "preferences", 2)
    assert report["findings"][0]["number"] == 2


def test_the_command_passes_on_warnings(tmp_path):
    result = run("check", write_jsonl(tmp_path / "rows.jsonl", [GOOD, GOOD]))
    assert result.exit_code == 0
    assert "0 errors, 1 warnings" in result.output


def test_the_command_names_prompts_on_both_sides(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    result = run("check", path, "--held-out", write_jsonl(tmp_path / "b.jsonl", [pair("Which one?")]))
    assert result.exit_code == 2
    assert "leakage: 1" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jsonl"], "does not exist"),
        (["{rows}", "nonsense"], "'nonsense' is no KEY=VALUE"),
        (["{rows}", "no_such_key=1"], "no_such_key: unknown key"),
        (["{odd}"], "holds neither preferences"),
        (["{tree}"], "holds message trees"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, arguments, says):
    rows, odd = write_jsonl(tmp_path / "rows.jsonl", [GOOD]), write_jsonl(tmp_path / "odd.jsonl", [{"a": 1}])
    message = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "a"}
    tree = write_jsonl(tmp_path / "tree.jsonl", [message])
    result = run("check", *(argument.format(rows=rows, odd=odd, tree=tree) for argument in arguments))
    assert result.exit_code == 2
    assert says in result.output


def test_columns_and_preprocessing_are_set_on_the_command_line(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}] * 2)
    result = run("check", path, "prompt_column=question", "data.response_column=answer")
    assert "2 rows of demonstrations, 0 errors, 1 warnings" in result.output
