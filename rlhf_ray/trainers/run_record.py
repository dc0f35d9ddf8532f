"""run.json: which stage a run folder is of, in which format, and how its run goes.

{"format": 1, "package": "0.1.0", "stage": "ppo", "settings": "9f86d081...", "status": "finished",
 "since": "2026-11-21T12:00:00+0000", "error": null, "extends": null}

Format 0 is a run folder without this file: it is read as it is, and gets one when its run goes on.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rlhf_ray import __version__
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.files import disk_errors, write_whole
from rlhf_ray.tracking.record import POLICY_FOLDER, now
from rlhf_ray.trainers.run_lock import is_held

RUN_FILE = "run.json"
FORMAT = 1
#: "interrupted": by Ctrl-C, or its process was killed. It, and one that failed, can be resumed.
Status = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself."""

    stage: str
    settings: str  # digest of what decides what the stage makes
    status: Status
    since: str  # ISO 8601: when the status became this
    error: str | None = None  # of a run that failed
    extends: int | None = None  # the step at which the run had finished before, until it finishes again
    package: str = __version__  # that last wrote here
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        with disk_errors("the state of the run", folder):
            write_whole(folder / RUN_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def new(
        cls, stage: str, settings: str, status: Status, error: BaseException | None = None, extends: int | None = None
    ) -> "RunRecord":
        return cls(stage, settings, status, now(), f"{type(error).__name__}: {error}" if error else None, extends)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """The record of the run in `folder`; None in format 0.

        Raises:
            ConfigError: a later version of this package wrote the folder.
            DataError: the file is damaged.
        """
        path = folder / RUN_FILE
        try:
            content = json.loads(path.read_bytes())
            if (format := content["format"]) <= FORMAT:
                return cls(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it to resume the run without it") from error
        raise ConfigError(
            f"{folder} has format {format}, written by rlhf-ray {content.get('package')}; this version reads up to "
            f"format {FORMAT}: update rlhf-ray"
        )


def status_of(folder: Path) -> Status:
    """How the run in `folder` goes; one that says it is running, but whose process is gone, was interrupted."""
    if is_held(folder):
        return "running"
    record = RunRecord.read(folder)
    if record is None:
        return "finished" if (folder / POLICY_FOLDER / "config.json").is_file() else "interrupted"
    return "interrupted" if record.status == "running" else record.status
