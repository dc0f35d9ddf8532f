"""Tables beyond memory_mib: the same rows, mapped from a file that goes when nobody holds it."""

import gc
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_rows import plain_tokenizer, write_jsonl

from rlhf_ray.config.data import DemonstrationDataSection, PreferenceDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.spool import MappedTable, TableSpool, open_mapped
from rlhf_ray.errors import DataError
from rlhf_ray.learner.ragged import Ragged

pytestmark = pytest.mark.unit

SCHEMA = pa.schema([pa.field("tokens", pa.list_(pa.int32()))])


def part(start):
    return pa.table(
        {"tokens": [list(range(start, start + 1000)) for start in range(start, start + 100)]}, schema=SCHEMA
    )


@pytest.mark.parametrize("parts", [1, 2, 3, 7])  # a part is 0.4 MiB
def test_the_rows_are_the_same_in_memory_and_in_a_file(tmp_path, parts):
    spool = TableSpool(SCHEMA, 1, str(tmp_path / "spill"))
    for number in range(parts):
        spool.append(part(number))
    table, folder = spool.finish()
    assert table.equals(pa.concat_tables([part(number) for number in range(parts)]))
    assert (folder is not None) == (parts > 2)


def test_a_spool_of_nothing_is_an_empty_table():
    table, folder = TableSpool(SCHEMA, 1, None).finish()
    assert (table.num_rows, table.schema, folder) == (0, SCHEMA, None)


def big_spool(tmp_path):
    spool = TableSpool(SCHEMA, 1, str(tmp_path))
    for number in range(5):
        spool.append(part(number))
    return spool.finish()


def test_the_file_goes_with_its_holder(tmp_path):
    table, folder = big_spool(tmp_path)
    assert list(tmp_path.iterdir())
    del folder
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert table["tokens"][0].as_py() == list(range(1000))  # what is mapped stays readable


def test_rows_of_a_mapped_table_are_views_of_the_file(tmp_path):
    before = pa.total_allocated_bytes()
    table, _folder = big_spool(tmp_path)
    ragged = Ragged(table["tokens"])
    assert pa.total_allocated_bytes() - before < 0.1 * table.nbytes
    assert not ragged[0].flags.owndata
    assert ragged[499].tolist() == part(4)["tokens"][99].as_py()


def test_other_processes_get_the_file_rather_than_a_copy(tmp_path):
    table, folder = big_spool(tmp_path)
    sent = pickle.dumps(MappedTable(str(Path(folder.name, "rows.arrow"))))
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert isinstance(received, pa.Table)
    assert received.equals(table)


def test_a_node_that_does_not_see_the_file_is_told_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read on this node.*data\.spill_folder.*data\.memory_mib"):
        open_mapped(str(tmp_path / "nothing.arrow"))


@pytest.mark.parametrize("kind", ["demonstrations", "preferences"])
def test_loading_is_the_same_through_a_file(tmp_path, kind):
    section, load = {
        "demonstrations": (DemonstrationDataSection, load_demonstrations),
        "preferences": (PreferenceDataSection, load_preferences),
    }[kind]
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefghij"), 80)) for _ in range(64)]
    rows = [{"prompt": t[:9], "completion": t, "chosen": t, "rejected": t[::-1]} for t in texts] * 50
    path, tokenizer = write_jsonl(tmp_path / "rows.jsonl", rows), plain_tokenizer()
    whole = load(section(path=path), tokenizer)
    through = load(section(path=path, memory_mib=1, spill_folder=str(tmp_path / "spill")), tokenizer)
    assert (whole.folder, whole.shared()) == (None, whole.table)
    assert through.table.equals(whole.table)
    assert through.report == whole.report
    assert pickle.loads(pickle.dumps(through.shared())).equals(whole.table)
