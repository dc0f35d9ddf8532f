"""Every file format, and every way in which a file can be wrong."""

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from data_rows import write_jsonl

from rlhf_ray.data.sources import load_table
from rlhf_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

ROWS = [{"prompt": "a, b\nc", "level": 1}, {"prompt": "ü", "level": 2}, {"prompt": "", "level": 3}]


def write_json(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def write_arrow_file(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table)


def write_arrow_stream(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as sink:
        sink.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_jsonl),
        ("rows.json", write_json),
        ("lines.json", write_jsonl),
        ("rows.csv", write_csv),
        ("rows.parquet", write_parquet),
        ("file.arrow", write_arrow_file),
        ("stream.arrow", write_arrow_stream),
        ("UPPER.JSONL", write_jsonl),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, write):
    write(tmp_path / name, ROWS)
    assert load_table(str(tmp_path / name)).to_pylist() == ROWS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": "x"}\n\n{"a": "y"\n', r"line 3: malformed JSON \(Expecting ',' delimiter"),
        (b'{"a": "x"}\nhello\n', r"line 2: malformed JSON"),
        (b'{"a": "x"}\n["y"]\n', r"line 2: holds a list where an object"),
        (b'{"a": "x"}\n{"a": "\xff"}\n', r"line 2: not UTF-8"),
        (b'{"a": "x"}\n{"a": "y"}\n\n{"a": ["z"]}\n', r"line 4: column 'a' holds a list unlike"),
        (b'{"a": null}\n{"a": 1}\n{"a": 1.5}\n{"a": "x"}\n', r"line 4: column 'a' holds a string unlike"),
        (b'{"m": [{"role": "user"}]}\n{"m": [{"role": 1}]}\n', r"line 2: column 'm' holds a list unlike"),
        (b"", r"is empty"),
        (b"\n\n", r"has no rows"),
    ],
)
def test_a_wrong_jsonl_file_is_named_with_its_line(tmp_path, text, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    with pytest.raises(DataError, match=says) as caught:
        load_table(str(path))
    assert str(path) in str(caught.value)


def test_text_that_looks_like_a_date_stays_text(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "2024-01-01"}, {"a": "2024-01-02"}])
    assert load_table(str(tmp_path / "rows.jsonl"))["a"].to_pylist() == ["2024-01-01", "2024-01-02"]


def test_lines_longer_than_arrows_block_are_read(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "x" * 2_500_000}, {"a": "y"}])
    assert load_table(str(tmp_path / "rows.jsonl")).num_rows == 2


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.json", '[{"a": 1},\n {"a": 2]', r"line 2: malformed JSON"),
        ("rows.json", '[{"a": 1}, 3]', r"entry 2: holds a number"),
        ("rows.json", "[]", r"has no rows"),
        ("rows.csv", "a,b\n1,2\n3\n", r"Row #3: Expected 2 columns, got 1"),
        ("rows.csv", "a,b\n", r"has no rows"),
        ("rows.parquet", "not parquet at all", r"Cannot read"),
        ("rows.arrow", "not arrow at all", r"Cannot read"),
        ("rows.txt", "hello", r"must end in one of \.jsonl"),
    ],
)
def test_other_formats_report_what_is_wrong(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        load_table(str(tmp_path / name))


@pytest.mark.parametrize("path", ["missing.jsonl", "data/missing.parquet", "/no/such/file", "./x", "a/b/c"])
def test_a_missing_file_is_said_to_be_missing(path):
    with pytest.raises(DataError, match="does not exist"):
        load_table(path)


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-00000.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "data" / "train-00001.jsonl", ROWS[1:2])
    write_jsonl(tmp_path / "data" / "test-00000.jsonl", ROWS[2:])
    assert load_table(str(tmp_path)).to_pylist() == ROWS[:2]
    assert load_table(str(tmp_path), split="test").to_pylist() == ROWS[2:]


@pytest.mark.parametrize("split", ["test", "train[:1]"])
def test_a_split_that_no_file_is_named_after_is_refused(tmp_path, split):
    write_jsonl(tmp_path / "train-00000.jsonl", ROWS)
    with pytest.raises(DataError, match="holds no file of the split"):
        load_table(str(tmp_path), split=split)


def test_a_folder_without_split_names_gives_all_files_in_order(tmp_path):
    write_parquet(tmp_path / "a.parquet", ROWS[:2])
    write_jsonl(tmp_path / "b.jsonl", ROWS[2:])
    assert load_table(str(tmp_path)).to_pylist() == ROWS


def test_a_folder_without_data_or_with_unlike_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no data file"):
        load_table(str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", [{"a": "x"}])
    write_jsonl(tmp_path / "b.jsonl", [{"a": ["x"]}])
    with pytest.raises(DataError, match="do not have the same columns"):
        load_table(str(tmp_path))


def test_a_dataset_saved_to_disk_keeps_its_selection(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.select([2, 0]).save_to_disk(tmp_path / "one")
    assert load_table(str(tmp_path / "one")).to_pylist() == [ROWS[2], ROWS[0]]
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "dict")
    assert load_table(str(tmp_path / "dict"), split="test").num_rows == 3
    with pytest.raises(DataError, match="no split 'train'; it has test"):
        load_table(str(tmp_path / "dict"))


def test_an_unreachable_hub_dataset_fails_without_retries(monkeypatch):
    monkeypatch.setattr("rlhf_ray.data.sources.ask_hub", lambda *args, **kwargs: "out of reach")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: pytest.fail("the hub client was let loose"))
    with pytest.raises(ConfigError, match=r"dataset 'no-such-org/no-such-data'.*not in the local cache"):
        load_table("no-such-org/no-such-data")
