"""Runs one side of a comparison in processes of its own; the next one starts when all of them are gone."""

import json
import os
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "RLHF_RAY_BENCHMARK"  # environment variable that all processes of a side inherit
RESULT = "RESULT "
GONE_TIMEOUT_S = 60.0


def give_result(value: Any) -> None:
    """Called in the side's process: hand `value` (JSON) to the benchmark."""
    print(RESULT + json.dumps(value), flush=True)


def run_side(python: Path | str, script: str, *arguments: object, threads: int, timeout_s: float = 1800) -> Any:
    """What `script` (in this folder) gave as its result. RuntimeError with the end of its output when it fails."""
    mark = uuid.uuid4().hex
    environment = os.environ | {
        MARK: mark,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or len(results) != 1:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    wait_until_gone(mark)
    return json.loads(results[0].removeprefix(RESULT))


def wait_until_gone(mark: str) -> None:
    """Wait for the last process that inherited `mark`: a run's Ray daemons outlive its driver by a moment."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while left := marked(mark):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {left} of the last run are still there; stop them and measure again")
        time.sleep(0.2)


def marked(mark: str) -> list[int]:
    """Process ids with `mark` in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                environment = (process / "environ").read_bytes()
            except OSError:  # gone meanwhile, or not ours
                continue
            if wanted in environment.split(b"\0"):
                found.append(int(process.name))
    return found
