"""A driver that dies: `rlhf-ray ppo` in a process of its own, ended by SIGKILL at a chosen moment, and resumed.

All drivers join the test session's Ray, which survives them: what a killed one leaves behind is in the next one's way.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.load import to_yaml

DEADLINE_S = 900
#: What the driver reaches in every iteration.
PHASES = ("draw", "rollouts", "composed", "trained", "published", "tracked")


@dataclass(frozen=True)
class Moment:
    """When the driver dies: the `after`-th time that it reaches `phase`, or so many `iterations` into the run.

    The latter is a time: 3.4 is when 3 iterations are done, and 0.4 of what an iteration takes has passed since.
    """

    phase: str = ""
    after: int = 0
    iterations: float = 0.0

    def __str__(self) -> str:
        return f"{self.phase}-{self.after}" if self.phase else f"{self.iterations:g}-iterations"

    @property
    def plan(self) -> list[dict[str, Any]]:
        kill = {"actor": "driver", "action": "kill", "phase": self.phase, "after": self.after}
        return [kill] if self.phase else []


def timeline(iterations: int, every: int) -> list[Moment]:
    """What the driver reaches in a run of so many iterations with a checkpoint `every` so many, in order."""
    moments: list[Moment] = []
    for number in range(1, iterations + 1):
        moments += [Moment(phase, number) for phase in PHASES]
        if number % every == 0 or number == iterations:
            checkpoint = -(-number // every)
            moments += [Moment("checkpointing", checkpoint), Moment("checkpointed", checkpoint)]
    return moments


def start(config: PPOConfig, folder: Path, plan: list[dict[str, Any]]) -> subprocess.Popen[bytes]:
    """The driver of a run with these faults in this session's Ray; its output goes to `output.txt` beside the file of
    its configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = ray.get_runtime_context().gcs_address
    resources = config.resources.model_copy(update={"ray_address": address})
    file = folder / "ppo.yaml"
    file.write_text(to_yaml(config.model_copy(update={"resources": resources})))
    environment = os.environ | {"RLHF_RAY_FAULTS": json.dumps(plan)}
    with (folder / "output.txt").open("ab") as output:
        command = [sys.executable, "-m", "rlhf_ray.cli.main", "ppo", "-c", str(file)]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def kill_at(config: PPOConfig, folder: Path, moment: Moment, iteration_s: float = 0.0) -> Path:
    """Run `config` until the moment; the run's folder. `iteration_s`: what an iteration takes, for a moment in time."""
    run = Path(config.run.root) / str(config.run.name)
    driver = start(config, folder, moment.plan)
    try:
        if not moment.phase:
            await_iterations(run / "metrics.jsonl", int(moment.iterations), driver)
            time.sleep(moment.iterations % 1 * iteration_s)
            driver.kill()
        code = driver.wait(DEADLINE_S)
    finally:
        driver.kill()
        driver.wait()
    assert code == -signal.SIGKILL, f"the driver ended with {code}:\n{(folder / 'output.txt').read_text()}"
    return run


def await_iterations(path: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    """Wait until so many iterations are in a run's metrics.jsonl."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.is_file() or path.read_bytes().count(b'"seconds/total"') < count:
        assert driver.poll() is None, f"the driver ended before {count} iterations did"
        assert time.monotonic() < deadline, f"{count} iterations did not end"
        time.sleep(0.02)
