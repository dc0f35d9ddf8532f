"""Failed rewards, kept for a person to look at: one JSON line each in `<run>/quarantine/rewards.jsonl`."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rlhf_ray.rewards.failure import RewardFailure

FILE_NAME = "rewards.jsonl"


def append_failures(
    folder: Path,
    failures: Iterable[RewardFailure],
    iteration: int,
    during: Literal["training", "evaluation"] = "training",
) -> Path:
    """Append `failures` to the run's quarantine folder (made if missing); returns the file.

    `iteration` is the one that was training, or after which the policy was evaluated.
    """
    path = folder / FILE_NAME
    place = {"iteration": iteration, "during": during}
    lines = [json.dumps({**place, **asdict(failure)}) + "\n" for failure in failures]
    if lines:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    return path
