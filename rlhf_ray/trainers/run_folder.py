"""The folder of a run: where everything that outlives the process is written.

runs/<name>/  config.yaml  environment.json  metrics.jsonl  rollouts/  digests/  evaluations/  tensorboard/
              checkpoints/  quarantine/  logs/  policy/ (the trained model, in Hugging Face format)
              best/ (the best one, if kept)
"""

import json
import os
import time
from pathlib import Path

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.load import record_yaml
from rlhf_ray.errors import ConfigError
from rlhf_ray.tracking.metrics_file import METRICS_FILE
from rlhf_ray.tracking.record import CONFIG_FILE, ENVIRONMENT_FILE, POLICY_FOLDER, SUBMITTED_JOB_VARIABLE, environment
from rlhf_ray.tracking.tracker import TENSORBOARD_FOLDER


class RunFolder:
    """Paths inside a run's folder. The folder exists; what is in it is made by whoever writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, run: RunSection, stage: str) -> "RunFolder":
        """Make the folder of a new run: `<run.root>/<run.name>`, or named after the stage and the time.

        Raises:
            ConfigError: the folder has content already, cannot be written, or would vanish with a submitted job.
        """
        root = Path(run.root).expanduser()
        if not root.is_absolute() and SUBMITTED_JOB_VARIABLE in os.environ:
            raise ConfigError(
                f"run.root: {run.root!r} is relative, but a submitted job runs in a temporary copy of the working"
                f" directory ({Path.cwd()}) that is deleted with all that the run writes; give an absolute path"
            )
        folder = root.absolute() / (run.name or f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            occupied = any(folder.iterdir())
            if not occupied:
                (folder / "logs").mkdir()
        except OSError as error:
            raise ConfigError(f"run.root: cannot write {folder} ({error.strerror}); choose another") from None
        if occupied:
            raise ConfigError(
                f"run.name: {folder} has content already; continue that run with --resume {folder},"
                f" or choose another run.name"
            )
        return cls(folder)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """The folder of an earlier run, to resume or to read.

        Raises:
            ConfigError: there is no run in it.
        """
        folder = Path(path).expanduser().absolute()
        if not (folder / CONFIG_FILE).is_file():
            raise ConfigError(f"{folder}: no run to resume here (it has no {CONFIG_FILE})")
        return cls(folder)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG_FILE

    @property
    def environment_file(self) -> Path:
        return self.path / ENVIRONMENT_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / METRICS_FILE

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def digests(self) -> Path:
        return self.path / "digests"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def tensorboard(self) -> Path:
        return self.path / TENSORBOARD_FOLDER

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def policy(self) -> Path:
        return self.path / POLICY_FOLDER

    @property
    def best(self) -> Path:
        return self.path / "best"

    def write_start(self, config: Section) -> None:
        """Write config.yaml (resolved) and add this start to environment.json, which keeps one entry per (re)start."""
        self.config_file.write_text(record_yaml(config), encoding="utf-8")
        starts = json.loads(self.environment_file.read_text()) if self.environment_file.exists() else []
        self.environment_file.write_text(json.dumps([*starts, environment()], indent=2) + "\n", encoding="utf-8")
