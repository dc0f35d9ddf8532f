"""Weights & Biases; `WANDB_MODE=offline` keeps the run in the run folder, to be sent later with `wandb sync`."""

from pathlib import Path
from types import ModuleType

from rlhf_ray.config.base import Section
from rlhf_ray.errors import ConfigError

RUN_ID_FILE = "wandb_run_id"


def import_wandb() -> ModuleType:
    """The package; ConfigError names the extra where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "tracking.wandb_project: W&B is not installed; install the extra: pip install 'rlhf-ray[wandb]'"
        ) from None
    return wandb


class WandbTracker:
    """One W&B run, named after the run folder. Its id is kept there, so that a resumed run goes on in it."""

    def __init__(self, project: str, folder: Path, config: Section) -> None:
        wandb = import_wandb()
        id_file = folder / RUN_ID_FILE
        known = id_file.read_text().strip() if id_file.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=known,
                resume="allow",
                dir=str(folder),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"tracking.wandb_project: W&B does not start: {error}\n"
                "Log in with `wandb login`, or set WANDB_MODE=offline to keep the run here and send it later."
            ) from error
        id_file.write_text(self._run.id)
        # Our own axis: W&B's refuses to go back to the step that a resumed run starts from.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({**metrics, "iteration": step})

    def rewind(self, step: int) -> None:
        """Nothing: the later of two values of an iteration is drawn over the earlier."""

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
