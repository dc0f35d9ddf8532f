"""`rlhf-ray data check` and the loading of a table beyond memory_mib: seconds, and memory that does not grow with rows.

    python benchmarks/bench_data_check.py [--rows 200000] [--load-rows 100000]

Preference pairs of some 700 characters are generated as JSONL and as Parquet, one in a thousand malformed, one in a
thousand a duplicate; a tenth of the rows is checked too, and its peak memory is what the program itself takes. Loading
tokenises pairs (a 2,048-token BPE) with memory_mib=1, so that all of them go through the file. Each run is a process of
its own; memory is the peak of its resident set.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from report import report
from side import give_result, run_side

WORDS = ("the", "model", "answers", "a", "question", "about", "rivers", "with", "care", "and", "names", "where", "each")
EVERY = 1000  # one row in so many is malformed, another one a duplicate


def pairs(rows: int) -> Iterator[dict[str, Any]]:
    """Preference rows, the same for the same number."""
    rng = random.Random(0)
    previous: dict[str, Any] = {}
    for number in range(rows):
        texts = [" ".join(rng.choices(WORDS, k=count)) for count in (25, 60, 55)]
        row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) | {"id": number}
        if number % EVERY == 1:
            row["rejected"] = None
        elif number % EVERY == 2:
            row |= {name: previous[name] for name in ("prompt", "chosen", "rejected")}
        previous = row if row["rejected"] else previous
        yield row


def write(folder: Path, rows: int) -> list[Path]:
    """The rows as JSONL and as Parquet."""
    jsonl, parquet = folder / f"{rows}.jsonl", folder / f"{rows}.parquet"
    with jsonl.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in pairs(rows))
    table, writer = [], None
    for row in pairs(rows):
        table.append(row)
        if len(table) == 10_000 or row["id"] == rows - 1:
            part = pa.Table.from_pylist(table)
            writer = writer or pyarrow.parquet.ParquetWriter(parquet, part.schema)
            writer.write_table(part)
            table = []
    assert writer is not None
    writer.close()
    return [jsonl, parquet]


def run_check(path: str) -> dict[str, Any]:
    from rlhf_ray.data.check import check
    from rlhf_ray.data.walk import find_section

    started = time.monotonic()
    kind, section = find_section(path, {}, None)
    checked = check(section, kind)
    return measured(started) | {"rows": checked.rows, "found": dict(checked.findings.counts)}


def run_load(path: str) -> dict[str, Any]:
    from rlhf_ray.config.data import PreferenceDataSection
    from rlhf_ray.data.preferences import load_preferences
    from rlhf_ray.demo.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([" ".join(WORDS)] * 4)
    started = time.monotonic()
    section = PreferenceDataSection(path=path, memory_mib=1, preprocess="bench_data_check:sound")
    loaded = load_preferences(section, tokenizer)
    result = measured(started)
    size = Path(loaded.folder.name, "rows.arrow").stat().st_size if loaded.folder else 0
    return result | {"rows": loaded.table.num_rows, "file_mib": size / 2**20}


def sound(row: dict[str, Any]) -> dict[str, Any] | None:
    return row if row["rejected"] else None


def measured(started: float) -> dict[str, Any]:
    """Wall clock, this process's own processor time, and the peak of its resident set."""
    seconds = time.monotonic() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # getrusage would count what the parent held when it forked
    return {"seconds": seconds, "cpu_s": time.process_time(), "peak_mib": int(status["VmHWM"].split()[0]) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--load-rows", type=int, default=100_000)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, counts in (
            ("check", (options.rows // 10, options.rows)),
            ("load", (options.load_rows // 10, options.load_rows)),
        ):
            for count in counts:
                for path in write(Path(folder), count):
                    result = run_side(sys.executable, Path(__file__).name, what, path, threads=1)
                    rows.append(
                        {
                            "run": f"{what} {path.suffix[1:]}",
                            "rows": count,
                            "file MiB": path.stat().st_size / 2**20,
                            "seconds": result["seconds"],
                            "CPU s": result["cpu_s"],
                            "peak MiB": result["peak_mib"],
                            "found": json.dumps(result.get("found", {"mapped MiB": round(result.get("file_mib", 0))})),
                        }
                    )
                    path.unlink()
    report("data_check", rows)


if __name__ == "__main__":
    if sys.argv[1:2] in (["check"], ["load"]):
        give_result({"check": run_check, "load": run_load}[sys.argv[1]](sys.argv[2]))
        os._exit(0)
    main()
