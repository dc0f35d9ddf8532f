"""Tables that may outgrow memory: held while they are small, written to an Arrow file and mapped from it beyond that.

A mapped table costs address space; the pages that a step touches come from the disk's cache, and go when memory is
needed. Other processes map the same file (`MappedTable`) rather than receive a copy.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from rlhf_ray.errors import DataError

MIB = 2**20


class TableSpool:
    """Takes a table in parts; `finish` gives it as one, from memory or mapped."""

    def __init__(self, schema: pa.Schema, memory_mib: int, folder: str | None) -> None:
        """Beyond `memory_mib` the rows go to a file in `folder` (None: this machine's temporary folder)."""
        self._schema, self._limit, self._parent = schema, memory_mib * MIB, folder
        self._parts: list[pa.Table] = []
        self._held = 0  # bytes of the parts
        self._folder: TemporaryDirectory[str] | None = None
        self._writer: Any = None

    def append(self, part: pa.Table) -> None:
        """Add rows in the spool's schema."""
        if self._writer is not None:
            self._writer.write_table(part)
            return
        self._parts.append(part)
        self._held += part.nbytes
        if self._held > self._limit:
            self._spill()

    def finish(self) -> tuple[pa.Table, TemporaryDirectory[str] | None]:
        """The whole table, and the folder of the file that it is mapped from; the file goes with the folder object."""
        if self._writer is None:
            return pa.concat_tables(self._parts) if self._parts else self._schema.empty_table(), None
        self._writer.close()
        assert self._folder is not None
        return open_mapped(table_file(self._folder)), self._folder

    def _spill(self) -> None:
        if self._parent:
            Path(self._parent).mkdir(parents=True, exist_ok=True)
        self._folder = TemporaryDirectory(prefix="rlhf-ray-data-", dir=self._parent)
        self._writer = pa.ipc.new_file(table_file(self._folder), self._schema)
        for part in self._parts:
            self._writer.write_table(part)
        self._parts.clear()


class MappedTable:
    """Stands for the table in a file: wherever it is unpickled, it is the `pa.Table`, mapped from that file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], pa.Table], tuple[str]]:
        return open_mapped, (self.path,)


def table_file(folder: "TemporaryDirectory[str]") -> str:
    return str(Path(folder.name) / "rows.arrow")


def open_mapped(path: str) -> pa.Table:
    """The table in an Arrow file, without reading it. Raises DataError where this machine does not see the file."""
    try:
        return pa.ipc.open_file(pa.memory_map(path)).read_all()
    except OSError as exc:
        raise DataError(
            f"The tokenised rows in '{path}' cannot be read on this node ({exc}). Let data.spill_folder be a folder "
            "that all nodes share, or raise data.memory_mib so that the rows stay in memory."
        ) from exc
