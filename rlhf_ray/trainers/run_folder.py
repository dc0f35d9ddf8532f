"""The folder of a run: where everything that outlives the process is written.

runs/<name>/  config.yaml  environment.json  run.json  lock  metrics.jsonl  failures.jsonl  rollouts/  digests/
              evaluations/  tensorboard/  checkpoints/  quarantine/  logs/
              policy/ (the trained model, in Hugging Face format)  best/ (the best one, if kept)
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.load import record_yaml
from rlhf_ray.errors import ConfigError
from rlhf_ray.files import aside_name, disk_errors, write_whole
from rlhf_ray.tracking.metrics_file import METRICS_FILE
from rlhf_ray.tracking.record import CONFIG_FILE, ENVIRONMENT_FILE, POLICY_FOLDER, SUBMITTED_JOB_VARIABLE, environment
from rlhf_ray.tracking.tracker import TENSORBOARD_FOLDER
from rlhf_ray.trainers.run_lock import LOCK_FILE, RunLock
from rlhf_ray.trainers.run_record import RUN_FILE, RunRecord, Status
from rlhf_ray.trainers.settings import settings_digest

#: What a run that was killed before it began may have left.
BEFORE_THE_START = {"logs", LOCK_FILE, RUN_FILE, ENVIRONMENT_FILE} | {
    aside_name(name) for name in (ENVIRONMENT_FILE, RUN_FILE, CONFIG_FILE)
}


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
            occupied = {path.name for path in folder.iterdir()} - BEFORE_THE_START
            if not occupied:
                (folder / "logs").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.root: cannot write {folder} ({error.strerror}); choose another") from None
        if occupied:
            raise ConfigError(
                f"run.name: {folder} has content already; continue that run with --resume {folder},"
                f" or choose another run.name"
            )
        return cls(folder)

    @classmethod
    def open(cls, path: str | Path, stage: str | None = None) -> "RunFolder":
        """The folder of an earlier run (of `stage`, where given), to resume or to read.

        Raises:
            ConfigError: there is no run in it, one of another stage, or of a later version of this package.
        """
        folder = Path(path).expanduser().absolute()
        if not (folder / CONFIG_FILE).is_file():
            raise ConfigError(f"{folder}: no run to resume here (it has no {CONFIG_FILE})")
        record = RunRecord.read(folder)
        if stage and record and record.stage != stage:
            raise ConfigError(f"{folder} is a run of {record.stage}, not of {stage}: rlhf-ray {record.stage} --resume")
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

    @property
    def extends(self) -> int | None:
        """What `write_start` was given, while the run has not finished since."""
        record = RunRecord.read(self.path)
        return record.extends if record is not None else None

    def write_start(self, config: Section, stage: str, extends: int | None = None) -> None:
        """Write config.yaml (resolved) and run.json; add this start to environment.json, which has one entry each.

        `extends`: the step at which the run had finished that now goes further.
        """
        starts = json.loads(self.environment_file.read_text()) if self.environment_file.exists() else []
        with disk_errors("the start of the run", self.path):
            write_whole(self.environment_file, json.dumps([*starts, environment()], indent=2) + "\n")
            RunRecord.new(stage, settings_digest(config), "running", extends=extends).write(self.path)
            write_whole(self.config_file, record_yaml(config))  # last: with it, the folder is a run's

    @contextmanager
    def running(self, config: Section, stage: str, warn: Callable[[str], object]) -> Iterator[None]:
        """Hold the folder's lock while the block runs, and note its start and how it ends."""
        with RunLock(self.path).held(warn):
            self.write_start(config, stage)
            try:
                yield
            except KeyboardInterrupt:
                self.write_end("interrupted")
                raise
            except BaseException as error:
                self.write_end("failed", error)
                raise
            self.write_end("finished")

    def write_end(self, status: Status, error: BaseException | None = None) -> None:
        """Note in run.json how the run ended."""
        record = RunRecord.read(self.path)
        assert record is not None, "write_start comes first"
        extends = None if status == "finished" else record.extends
        RunRecord.new(record.stage, record.settings, status, error, extends).write(self.path)
