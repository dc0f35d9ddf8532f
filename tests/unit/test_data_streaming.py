"""Streams: the same rows as a whole reading, no more than are needed, and errors that say where."""

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from data_rows import plain_tokenizer, write_jsonl

from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.sources import join, load_table, stream_tables
from rlhf_ray.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

ROWS = [{"prompt": "abc", "level": level, "tags": ["x"] * (level % 3)} for level in range(10)]


@pytest.fixture(scope="module")
def tokenizer():
    return plain_tokenizer()


def write(folder, name):
    """ROWS in the format that the name says; returns the path."""
    path, table = folder / name, pa.Table.from_pylist(ROWS)
    if path.suffix == ".jsonl":
        write_jsonl(path, ROWS)
    elif path.suffix == ".json":
        path.write_text(str(ROWS).replace("'", '"'))
    elif path.suffix == ".csv":
        path.write_text("prompt,level\n" + "".join(f"abc,{row['level']}\n" for row in ROWS))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    elif path.name == "saved":
        datasets.Dataset(table).save_to_disk(path)
    else:
        opened = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
        with opened(path, table.schema) as sink:
            sink.write_table(table, max_chunksize=4)
    return str(path)


NAMES = ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "file.arrow", "stream.arrow", "saved"]


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_gives_the_rows_of_the_whole_in_small_tables(tmp_path, name):
    path = write(tmp_path, name)
    tables = list(stream_tables(path, rows=3))
    assert max(table.num_rows for table in tables) <= 3
    assert join(tables, path).to_pylist() == load_table(path).to_pylist()


@pytest.mark.parametrize("name", NAMES)
def test_max_samples_of_a_stream_are_its_first_rows(tmp_path, tokenizer, name):
    section = PromptDataSection(path=write(tmp_path, name), streaming=True, max_samples=5)
    loaded = load_prompts(section, tokenizer, 99)
    assert loaded.table["prompt_id"].to_pylist() == loaded.table["level"].to_pylist() == [0, 1, 2, 3, 4]
    assert loaded.report.rows.read == 5
    assert "left out" not in loaded.report.describe()


def test_a_stream_may_be_shorter_than_max_samples(tmp_path, tokenizer):
    section = PromptDataSection(path=write(tmp_path, "rows.jsonl"), streaming=True, max_samples=99)
    assert load_prompts(section, tokenizer, 99).table.num_rows == 10


def test_a_folder_is_streamed_file_by_file(tmp_path, tokenizer):
    write(tmp_path, "train-0.parquet")
    (tmp_path / "train-1.jsonl").write_text("not JSON")
    section = PromptDataSection(path=str(tmp_path), streaming=True, max_samples=9)
    assert load_prompts(section, tokenizer, 99).table.num_rows == 9
    with pytest.raises(DataError, match=r"train-1\.jsonl', line 1: malformed JSON"):
        load_prompts(section.model_copy(update={"max_samples": 11}), tokenizer, 99)


def test_lines_that_are_not_needed_are_not_read(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    with path.open("a") as file:
        file.write("not JSON\n")
    section = PromptDataSection(path=str(path), streaming=True, max_samples=10)
    assert load_prompts(section, tokenizer, 99).table.num_rows == 10
    with pytest.raises(DataError, match="line 11: malformed JSON"):
        load_prompts(section.model_copy(update={"max_samples": 11}), tokenizer, 99)


def test_row_groups_that_are_not_needed_are_not_read(tmp_path, tokenizer):
    path = write(tmp_path, "rows.parquet")
    groups = pyarrow.parquet.ParquetFile(path).metadata
    start = groups.row_group(4).column(0).data_page_offset
    content = bytearray((tmp_path / "rows.parquet").read_bytes())
    content[start : start + 16] = b"\xff" * 16
    (tmp_path / "rows.parquet").write_bytes(content)
    section = PromptDataSection(path=path, streaming=True, max_samples=8)
    assert load_prompts(section, tokenizer, 99).table.num_rows == 8
    with pytest.raises(DataError, match=r"Cannot read '.*rows\.parquet'"):
        load_prompts(section.model_copy(update={"max_samples": 9}), tokenizer, 99)


def test_columns_that_come_later_are_null_before(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": None}, {"a": 1}, {"a": 1.5, "b": "x"}])
    table = join(list(stream_tables(path, rows=1)), path)
    assert table.to_pylist() == [{"a": None, "b": None}, {"a": 1, "b": None}, {"a": 1.5, "b": "x"}]


def test_a_column_that_changes_its_type_is_refused(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "x": 1}] * 1024 + [{"prompt": "a", "x": "y"}])
    section = PromptDataSection(path=path, streaming=True, max_samples=2000)
    with pytest.raises(DataError, match=r"do not have the same columns: .*x"):
        load_prompts(section, tokenizer, 99)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.jsonl", "\n\n", "has no rows"),
        ("rows.jsonl", "", "is empty"),
        ("rows.csv", "prompt,b\nx,2\n3\n", "Expected 2 columns, got 1"),
        ("rows.parquet", "not parquet at all", "Cannot read"),
        ("rows.arrow", "not arrow at all", "Cannot read"),
        ("rows.txt", "hello", "must end in one of"),
    ],
)
def test_wrong_files_are_named_in_a_stream_too(tmp_path, tokenizer, name, text, says):
    (tmp_path / name).write_text(text)
    section = PromptDataSection(path=str(tmp_path / name), streaming=True, max_samples=5)
    with pytest.raises(DataError, match=says):
        load_prompts(section, tokenizer, 99)


def test_held_out_data_is_read_whole(tmp_path, tokenizer):
    path = write(tmp_path, "rows.jsonl")
    section = PromptDataSection(path=path, streaming=True, max_samples=2, eval_path=path)
    assert load_prompts(section, tokenizer, 99, path=path).table.num_rows == 10


def test_message_trees_are_not_streamed(tmp_path, tokenizer):
    row = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "a"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    section = PromptDataSection(path=path, streaming=True, max_samples=2, prompt_column="text")
    with pytest.raises(ConfigError, match=r"data\.streaming: .*message trees.*data\.streaming=false"):
        load_prompts(section, tokenizer, 99)


def test_a_stream_without_an_end_is_refused():
    with pytest.raises(ValueError, match="set max_samples, too"):
        PromptDataSection(path="rows.jsonl", streaming=True)


# --- the hub ---


def test_a_hub_dataset_is_downloaded_as_far_as_needed(tokenizer, monkeypatch):
    def rows():
        yield from ({"prompt": "abc", "level": level} for level in range(7))
        pytest.fail("read on")

    def load_dataset(name, subset, split, streaming):
        assert (name, subset, split, streaming) == ("org/data", "small", "test", True)
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr("rlhf_ray.data.sources.ask_hub", lambda *args, **kwargs: "found")
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    section = PromptDataSection(path="org/data", subset="small", split="test", streaming=True, max_samples=3)
    assert load_prompts(section, tokenizer, 99).table["level"].to_pylist() == [0, 1, 2]


def test_an_unreachable_hub_dataset_is_not_streamed(tokenizer, monkeypatch):
    monkeypatch.setattr("rlhf_ray.data.sources.ask_hub", lambda *args, **kwargs: "out of reach")
    section = PromptDataSection(path="no-such-org/no-such-data", streaming=True, max_samples=3)
    with pytest.raises(ConfigError, match=r"dataset 'no-such-org/no-such-data'.*not in the local cache"):
        load_prompts(section, tokenizer, 99)
