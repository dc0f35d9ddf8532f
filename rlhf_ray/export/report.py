"""The result of an export: what was written, how far each form is from its source; export.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.export.source import Kind
from rlhf_ray.export.verify import Gap

REPORT_FILE = "export.json"


@dataclass(frozen=True)
class Written:
    """One form on disk, loaded back and compared."""

    runtime: str  # what loaded it, with its version
    gap: Gap
    tolerance: float | None  # bound of gap.largest; None: reported only
    bytes: int  # of all its files


@dataclass(frozen=True)
class ExportReport:
    """What `export_model` did. `formats` keeps the order in which they were asked for."""

    folder: Path
    source: str
    kind: Kind
    compared_on: str
    formats: Mapping[str, Written]
    environment: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write export.json."""
        content = asdict(self) | {"folder": str(self.folder)}
        (folder / REPORT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def rows(self) -> list[list[str]]:
        """One row of text per form, under `titles`."""
        return [
            [
                name,
                f"{form.bytes / 1e6:,.2f} MB",
                f"{form.gap.largest:.2g}",
                f"{form.gap.mean:.2g}",
                "reported only" if form.tolerance is None else f"{form.tolerance:g}",
                form.runtime,
            ]
            for name, form in self.formats.items()
        ]

    def titles(self) -> list[str]:
        unit = "log-prob" if self.kind == "policy" else "score"
        return ["format", "size", f"largest {unit} gap", "mean gap", "tolerance", "loaded back by"]
