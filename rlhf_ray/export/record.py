"""What a run's folder says about the model that it trained: base, data, configuration, metrics, syncs, versions."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.tracking.metrics_file import METRICS_FILE
from rlhf_ray.tracking.record import CONFIG_FILE, ENVIRONMENT_FILE

#: Section of the configuration that names the stage -> what the stage is called.
STAGES = {
    "ppo": "PPO",
    "dpo": "direct preference optimisation",
    "sft": "supervised fine-tuning",
    "reward": "reward modelling",
}
#: Metrics that say how a run went, by the beginning of their names.
TELLING = (
    "eval/",
    "loss/",
    "reward/mean",
    "reward/accuracy",
    "reward/margin",
    "rewards/",
    "kl/mean",
    "response/length",
)


@dataclass(frozen=True)
class Syncs:
    """The audit of a PPO run's weight syncs, over all its iterations; gaps are in nats per token."""

    iterations: int
    version: int  # the last one that was published
    mean_gap: float
    largest_gap: float


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it. What the folder does not hold is empty."""

    name: str
    stage: str | None  # key of STAGES
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any] = field(default_factory=dict)  # of the last start
    metrics: list[dict[str, float | None]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record in a folder that has a config.yaml."""
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        starts_file, metrics_file = folder / ENVIRONMENT_FILE, folder / METRICS_FILE
        starts = json.loads(starts_file.read_text()) if starts_file.is_file() else []
        lines = metrics_file.read_text(encoding="utf-8").splitlines() if metrics_file.is_file() else []
        stage = next((stage for stage in STAGES if stage in config), None)
        environment = starts[-1] if starts else {}
        return cls(folder.absolute().name, stage, config, text, environment, [json.loads(line) for line in lines])

    @property
    def base(self) -> str:
        """The model that the run started from."""
        return str(self.config["model"]["name"])

    @property
    def parent(self) -> "RunRecord | None":
        """The run that made the base, where one did."""
        folder = Path(self.base).expanduser().parent
        return RunRecord.read(folder) if (folder / CONFIG_FILE).is_file() else None

    def telling_metrics(self) -> dict[str, tuple[float, float]]:
        """Metric -> its first and its last value in the run, of those that say how it went."""
        found: dict[str, tuple[float, float]] = {}
        for line in self.metrics:
            for name, value in line.items():
                if name.startswith(TELLING) and value is not None:
                    found[name] = (found.get(name, (value,))[0], value)
        return found

    def syncs(self) -> Syncs | None:
        """None for a run that has no generator to send weights to."""
        audited = [line for line in self.metrics if line.get("audit/max_gap") is not None]
        if not audited:
            return None
        mean_gaps = [float(line["audit/mean_gap"] or 0.0) for line in audited]
        largest = max(float(line["audit/max_gap"] or 0.0) for line in audited)
        version = int(audited[-1].get("weights/version") or 0)
        return Syncs(len(audited), version, sum(mean_gaps) / len(mean_gaps), largest)
