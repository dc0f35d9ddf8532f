"""The scale of a reward model's scores, stored beside its weights so that whoever loads it can normalise them."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_ray.errors import ConfigError

FILE = "rlhf_ray_reward.json"


@dataclass(frozen=True)
class RewardStats:
    """Mean and standard deviation of the scores over the reward model's training pairs."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def load(cls, folder: str | Path) -> "RewardStats | None":
        """The stats in `folder`, or None where it is not a reward model trained here.

        Raises ConfigError for a file that does not hold a finite mean and a finite, positive std.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            stats = cls(float(content["mean"]), float(content["std"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} should hold the numbers `mean` and `std` of the model's scores: {error!r}."
            ) from None
        if not (math.isfinite(stats.mean) and math.isfinite(stats.std) and stats.std > 0):
            raise ConfigError(
                f"{path}: mean must be finite and std finite and above 0, but they are {stats.mean} and {stats.std}."
            )
        return stats

    def save(self, folder: str | Path) -> None:
        (Path(folder) / FILE).write_text(json.dumps(asdict(self)) + "\n")

    def normalise(self, score: float) -> float:
        return (score - self.mean) / self.std
