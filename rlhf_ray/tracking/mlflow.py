"""MLflow: a tracking server, a database, or a local folder that `mlflow ui --backend-store-uri FOLDER` shows."""

import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rlhf_ray.config.base import Section
from rlhf_ray.errors import ConfigError

RUN_ID_FILE = "mlflow_run_id"
#: Where runs go that name no place: beside the run's folder.
DEFAULT_STORE = "mlruns"
#: MLflow's limits: the length of a parameter's value, and parameters per request.
PARAMETER_LENGTH, PARAMETERS_AT_ONCE = 500, 100


def import_mlflow() -> type:
    """MLflow's client class; ConfigError names the extra where the package is not installed."""
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ConfigError(
            "tracking.mlflow_experiment: MLflow is not installed; install the extra: pip install 'rlhf-ray[mlflow]'"
        ) from None
    return MlflowClient


class MLflowTracker:
    """One MLflow run, named after the run folder. Its id is kept there, so that a resumed run goes on in it.

    `uri` None: $MLFLOW_TRACKING_URI, else the folder `mlruns` beside the run folder.
    """

    def __init__(self, experiment: str, uri: str | None, folder: Path, config: Section) -> None:
        client_class = import_mlflow()
        from mlflow.entities import Metric, Param, RunStatus
        from mlflow.exceptions import MlflowException

        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or (folder.parent / DEFAULT_STORE).as_uri()
        if urlparse(uri).scheme in ("", "file"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants to be asked for a plain folder
        try:
            self._client = client_class(tracking_uri=uri)
            known = self._client.get_experiment_by_name(experiment)
        except MlflowException as error:
            raise ConfigError(f"tracking.mlflow_uri: MLflow cannot use {uri}: {error}") from error
        self._metric, self._status = Metric, RunStatus
        id_file = folder / RUN_ID_FILE
        if id_file.exists():
            self._run_id = id_file.read_text().strip()
            self._client.update_run(self._run_id, status=RunStatus.to_string(RunStatus.RUNNING))
            return
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment)
        self._run_id = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
        id_file.write_text(self._run_id)
        values = _flat(config.model_dump(mode="json")).items()
        parameters = [Param(_name(key), str(value)[:PARAMETER_LENGTH]) for key, value in values]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run_id, params=parameters[start : start + PARAMETERS_AT_ONCE])

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        values = [self._metric(_name(key), float(value), now, step) for key, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def rewind(self, step: int) -> None:
        """Nothing: MLflow keeps both values of a step and shows the later one."""

    def close(self, failed: bool = False) -> None:
        status = self._status.FAILED if failed else self._status.FINISHED
        self._client.set_terminated(self._run_id, status=self._status.to_string(status))


def _name(key: str) -> str:
    """`key` with what MLflow does not allow in a name turned into `_`."""
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)


def _flat(section: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested sections -> {"ppo.gamma": 1.0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value})
    return flat
