"""Seconds of recovery by actor and moment, as JSON and as a Markdown table."""

import json
from pathlib import Path


class RecoveryTable:
    """Cells of `folder`/recovery_matrix.json and .md; those of earlier sessions stay until they are run again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "recovery_matrix.json"
        self.cells: dict[str, dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, actor: str, moment: str, seconds: float) -> None:
        """`actor` was lost at `moment`, and the run had it back after so many seconds."""
        self.cells.setdefault(actor, {})[moment] = round(seconds, 2)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        moments = list(dict.fromkeys(moment for row in self.cells.values() for moment in row))
        lines = [["lost", *moments], ["---", *("---:" for _ in moments)]]
        lines += [
            [actor, *(f"{row[moment]:.1f}" if moment in row else "" for moment in moments)]
            for actor, row in self.cells.items()
        ]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
