"""`rlhf-ray data convert` and `stats`: every form becomes the plain one, without the faulty rows; and the numbers."""

import json

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from data_rows import assistant, plain_tokenizer, user, write_jsonl

from rlhf_ray.cli.main import main
from rlhf_ray.data.stats import stats
from rlhf_ray.data.walk import find_section

pytestmark = pytest.mark.unit

RATING = {"prompt": "p", "response_a": "x", "response_b": "y"}


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def read(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def converted(tmp_path, rows, *options, to="out.jsonl"):
    result = run("convert", write_jsonl(tmp_path / "rows.jsonl", rows), "-o", tmp_path / to, *options)
    assert result.exit_code == 0, result.output
    return read(tmp_path / to)


@pytest.mark.parametrize("to", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize(
    ("row", "plain"),
    [
        (RATING | {"preference": "b"}, [{"prompt": "p", "chosen": "y", "rejected": "x"}]),
        (
            {"prompt": "p", "responses": ["x", "y"], "scores": [1.0, 3.5]},
            [{"prompt": "p", "chosen": "y", "rejected": "x", "margin": 2.5}],
        ),
        ({"chosen": "p? yes", "rejected": "p? no"}, [{"prompt": "p?", "chosen": " yes", "rejected": " no"}]),
        (
            {"chosen": "\n\nHuman: p\n\nAssistant: x", "rejected": "\n\nHuman: p\n\nAssistant: y"},
            [{"prompt": [user("p")], "chosen": [assistant("x")], "rejected": [assistant("y")]}],
        ),
        (
            {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
            [{"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]}],
        ),
        ({"text": "all of it"}, [{"text": "all of it"}]),
        ({"prompt": "p", "answer": 42, "tags": ["a"]}, [{"prompt": "p", "answer": 42, "tags": ["a"]}]),
        (RATING | {"preference": "tie"}, []),
    ],
)
def test_every_form_becomes_the_plain_one(tmp_path, row, plain, to):
    rows = [row] if plain else [row, RATING | {"preference": "a"}]
    found = converted(tmp_path, rows, to=to)
    assert (found if plain else found[1:]) == plain


def test_what_was_converted_is_sound_and_stays_as_it_is(tmp_path):
    rows = [RATING | {"preference": "b"}, {"prompt": "q", "response_a": "x", "response_b": "y", "preference": "a"}]
    once = converted(tmp_path, rows)
    assert run("check", tmp_path / "out.jsonl").exit_code == 0
    assert converted(tmp_path, once, to="again.jsonl") == once


def test_faulty_rows_and_duplicates_stay_behind(tmp_path):
    good = {"prompt": "p", "chosen": "x", "rejected": "y"}
    rows = [good, good, good | {"chosen": None}, good | {"chosen": "y"}, {"prompt": "p"}, good | {"prompt": "q"}]
    assert converted(tmp_path, rows) == [good, good | {"prompt": "q"}]


def test_a_part_is_held_out_by_prompt(tmp_path):
    rows = [{"prompt": str(number // 4), "chosen": f"x{number}", "rejected": "y"} for number in range(80)]
    training = converted(tmp_path, rows, "--held-out", tmp_path / "held.parquet", "--fraction", 0.2)
    held_out = read(tmp_path / "held.parquet")
    assert (len(training), len(held_out)) == (64, 16)
    assert not {row["prompt"] for row in training} & {row["prompt"] for row in held_out}
    assert sorted(row["chosen"] for row in training + held_out) == sorted(row["chosen"] for row in rows)
    again = converted(tmp_path, rows[::-1], "--held-out", tmp_path / "held2.jsonl", "--fraction", 0.2)
    assert {row["prompt"] for row in again} == {row["prompt"] for row in training}
    other = converted(tmp_path, rows, "--held-out", tmp_path / "held3.jsonl", "--fraction", 0.2, "--seed", 1)
    assert {row["prompt"] for row in other} != {row["prompt"] for row in training}


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{"prompt": "p"}], ["-o", "{folder}/rows.jsonl"], "cannot be both input and output"),
        ([{"prompt": "p"}], ["-o", "{folder}/out.csv"], "must end in .jsonl or .parquet"),
        (
            [{"prompt": "p"}, {"prompt": [user("a"), assistant("b"), user("c")]}],
            ["-o", "{folder}/out.jsonl"],
            "the first row's prompt is text",
        ),
        ([{"prompt": "p", "n": 1}, {"prompt": "q", "n": "x"}], ["-o", "{folder}/out.parquet"], "Write a .jsonl file"),
        ([{"prompt": "p"}], ["-o", "{folder}/out.jsonl", "--held-out", "{folder}/b.jsonl"], "cannot be split"),
    ],
)
def test_what_cannot_be_written_is_explained_and_leaves_no_file(tmp_path, rows, options, says):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = run("convert", path, *(option.format(folder=tmp_path) for option in options))
    assert result.exit_code == 2
    assert says in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


# --- stats ---


def counted(tmp_path, rows, tokenizer=None, **overrides):
    kind, section = find_section(write_jsonl(tmp_path / "rows.jsonl", rows), overrides, None)
    return stats(section, kind, tokenizer).as_dict()


def test_numbers_of_preferences(tmp_path):
    rows = [
        {"prompt": "ab", "chosen": "long", "rejected": "x"},
        {"prompt": "ab", "chosen": "x", "rejected": "longer"},
        {"prompt": [user("a"), assistant("b"), user("c")], "chosen": "xy", "rejected": "x"},
        {"prompt": "ab", "chosen": None, "rejected": "x"},
    ]
    found = counted(tmp_path, rows)
    assert (found["rows"], found["unread"], found["entries"], found["different_prompts"]) == (4, 1, 3, 2)
    assert found["messages_per_prompt"] == {1: 2, 3: 1}
    assert found["chosen_is_longer"] == pytest.approx(2 / 3)
    assert found["characters"]["chosen"] == {"mean": pytest.approx(7 / 3), "min": 1, "median": 2, "p95": 3.8, "max": 4}


def test_a_ranking_counts_with_all_its_pairs_and_ties(tmp_path):
    found = counted(tmp_path, [{"prompt": "p", "responses": ["x", "y", "z"], "ranking": [1, 2, 2]}])
    assert (found["rows"], found["entries"], found["ties"], found["different_prompts"]) == (1, 2, 1, 1)


def test_tokens_are_counted_as_a_run_writes_them(tmp_path):
    found = counted(tmp_path, [{"prompt": "ab", "completion": "cde"}], plain_tokenizer())
    assert found["tokens"]["prompt"]["max"] == 3  # with BOS
    assert found["tokens"]["response"]["max"] == 4  # with eos


def test_the_command_prints_json(tmp_path):
    result = run("stats", write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "ab"}]), "--json")
    assert json.loads(result.output)["characters"]["prompt"]["mean"] == 2
    assert "characters of prompt: mean 2" in run("stats", tmp_path / "rows.jsonl").output
