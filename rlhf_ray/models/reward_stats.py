"""The scale of a reward model's scores, stored beside its weights so that whoever loads it can normalise them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "rlhf_ray_reward.json"


@dataclass(frozen=True)
class RewardStats:
    """Mean and standard deviation of the scores over the reward model's training pairs."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def load(cls, folder: str | Path) -> "RewardStats | None":
        """The stats in `folder`, or None where it is not a reward model trained here."""
        path = Path(folder) / FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def save(self, folder: str | Path) -> None:
        (Path(folder) / FILE).write_text(json.dumps(asdict(self)) + "\n")
