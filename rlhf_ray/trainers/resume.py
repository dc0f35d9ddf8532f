"""`--resume auto`: which run the same command goes on with, for job managers that start it again."""

from pathlib import Path

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.load import load_config
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.run_lock import is_held
from rlhf_ray.trainers.run_record import RUN_FILE, RunRecord, status_of
from rlhf_ray.trainers.settings import deciding_settings, settings_digest


def run_to_resume(config: Section, run: RunSection, stage: str) -> Path | None:
    """The folder of the run that `config` (with its section `run`) goes on with; None: there is none, a new one starts.

    With a run.name the run of that name, however it ended. Else the newest one of the stage in `run.root` that was made
    with the same settings, has not finished, and is not going on now.

    Raises:
        ConfigError: the run of that name was made with other settings.
        DataError: the record of one of the runs is damaged, so that it may be the one.
    """
    root = Path(run.root).expanduser().absolute()
    if run.name:
        return _named(root / run.name, config, stage)
    digest = settings_digest(config)
    newest_first = sorted(root.glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in newest_first if _fits(path.parent, stage, digest)), None)


def _fits(folder: Path, stage: str, digest: str) -> bool:
    try:
        record = RunRecord.read(folder)
    except ConfigError:  # of a later version
        return False
    if record is None or (record.stage, record.settings) != (stage, digest):
        return False
    return not is_held(folder, patient=True) and resumable(folder)  # who was killed just now is about to let go


def resumable(folder: Path) -> bool:
    """Whether the run in `folder` began, and neither goes on now nor has finished."""
    return RunFolder(folder).config_file.is_file() and status_of(folder) in ("interrupted", "failed")


def finished_with(folder: Path, config: Section) -> bool:
    """Whether the run in `folder` has finished, and with the settings of `config`.

    Raises:
        ConfigError, DataError: as `RunRecord.read`.
    """
    record = RunRecord.read(folder)
    return record is not None and (record.status, record.settings) == ("finished", settings_digest(config))


def _named(folder: Path, config: Section, stage: str) -> Path | None:
    if not RunFolder(folder).config_file.is_file():
        return None
    ran = deciding_settings(load_config(type(config), [RunFolder.open(folder, stage).config_file]))
    wanted = deciding_settings(config)
    if changed := [key for key in dict.fromkeys([*ran, *wanted]) if ran.get(key) != wanted.get(key)]:
        raise ConfigError(
            f"run.name: {folder} was made with other settings ({', '.join(changed)}); go on with the new ones by "
            f"--resume {folder}, or choose another run.name"
        )
    return folder
