"""MLflow: a tracking server, a database, or a folder (`file:/path`, which needs MLFLOW_ALLOW_FILE_STORE=true)."""

import time
from pathlib import Path
from typing import Any

from rlhf_ray.config.base import Section
from rlhf_ray.errors import ConfigError

RUN_ID_FILE = "mlflow_run_id"
#: MLflow's limit on the length of a parameter's value.
PARAMETER_LENGTH = 500


class MLflowTracker:
    """One MLflow run, named after the run folder. Its id is kept there, so that a resumed run goes on in it."""

    def __init__(self, experiment: str, uri: str | None, folder: Path, config: Section) -> None:
        try:
            from mlflow.entities import Metric, Param, RunStatus
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise ConfigError(
                "tracking.mlflow_experiment: MLflow is not installed; install the extra: pip install 'rlhf-ray[mlflow]'"
            ) from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name(experiment)
        except MlflowException as error:
            raise ConfigError(f"tracking.mlflow_uri: MLflow cannot use {uri or 'its default'}: {error}") from error
        self._metric, self._finished = Metric, RunStatus.to_string(RunStatus.FINISHED)
        id_file = folder / RUN_ID_FILE
        if id_file.exists():
            self._run_id = id_file.read_text().strip()
            self._client.update_run(self._run_id, status=RunStatus.to_string(RunStatus.RUNNING))
            return
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment)
        self._run_id = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
        id_file.write_text(self._run_id)
        values = _flat(config.model_dump(mode="json"))
        self._client.log_batch(
            self._run_id, params=[Param(key, str(value)[:PARAMETER_LENGTH]) for key, value in values.items()]
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, metrics=[self._metric(key, float(value), now, step) for key, value in metrics.items()]
        )

    def close(self) -> None:
        self._client.set_terminated(self._run_id, status=self._finished)


def _flat(section: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested sections -> {"ppo.gamma": 1.0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value})
    return flat
