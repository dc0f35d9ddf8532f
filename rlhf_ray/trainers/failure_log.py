"""What went wrong in a run and what was done about it: on the console, in the metrics and in `failures.jsonl`.

One JSON object per line: time (UTC), kind (infrastructure, data or configuration), actor (<kind>/<index>), phase (what
it was doing), iteration, attempt, cause, action, recovery_s. A recovery is a line of its own, with the seconds since
the loss was noticed; `recovery_s` of the others is null.
"""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlhf_ray.errors import ConfigError, DataError, RLHFRayError
from rlhf_ray.tracking.console import Console

FAILURES_FILE = "failures.jsonl"
Kind = Literal["infrastructure", "data", "configuration"]


class FailureLog:
    """The failures of one run, added to its file at once. Without a file or a console these are left out.

    `iteration` and `attempt` are kept up to date by the loop.
    """

    def __init__(self, path: Path | None = None, console: Console | None = None) -> None:
        self.path, self.console = path, console
        self.iteration: int | None = None
        self.attempt = 0
        self._counts: Counter[str] = Counter()

    def record(self, *, actor: str, phase: str, cause: str, action: str, kind: Kind = "infrastructure") -> None:
        """Something failed: say so, write it down, count it."""
        if self.console is not None:
            self.console.warn(f"{actor} ({phase}): {cause} {action[:1].upper()}{action[1:]}.")
        self._counts[f"failures/{kind}"] += 1
        self._write(kind, actor, phase, cause, action, None)

    def recovered(self, *, actor: str, recovery_s: float, phase: str = "") -> None:
        """What failed works again."""
        if self.console is not None:
            self.console.note(f"{actor} is back after {recovery_s:.1f} s")
        self._counts[f"failures/restarts/{actor.rpartition('/')[0]}"] += 1
        self._write("infrastructure", actor, phase, "", "recovered", recovery_s)

    def ended(self, error: RLHFRayError) -> None:
        """The run ends by an error; the console shows it anyway."""
        kinds: dict[type[RLHFRayError], Kind] = {ConfigError: "configuration", DataError: "data"}
        kind = next((name for cls, name in kinds.items() if isinstance(error, cls)), "infrastructure")
        self._write(kind, "driver", type(error).__name__, str(error), "the run ends", None)

    def metrics(self) -> dict[str, float]:
        """Failures by kind and restarts by kind of actor since the last call; empty if there were none."""
        counts, self._counts = self._counts, Counter()
        return {name: float(count) for name, count in sorted(counts.items())}

    def _write(self, kind: str, actor: str, phase: str, cause: str, action: str, recovery_s: float | None) -> None:
        if self.path is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "actor": actor,
            "phase": phase,
            "iteration": self.iteration,
            "attempt": self.attempt,
            "cause": cause,
            "action": action,
            "recovery_s": None if recovery_s is None else round(recovery_s, 3),
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # the recovery that it tells of is worth more
            if self.console is not None:
                self.console.warn(f"cannot write {self.path}: {error.strerror}")
