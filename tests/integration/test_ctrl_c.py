"""Ctrl-C at a terminal: a real `rlhf-ray ppo` ends by itself with a saved policy, and resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_runs import TinyRuns

from rlhf_ray.cli.main import main

pytestmark = pytest.mark.integration

COMMAND = str(Path(sys.executable).parent / "rlhf-ray")
#: Found because it lies in the working directory, as a person's own functions do.
MY_REWARDS = """
def brief(prompt, response):
    return -float(len(response))
"""


def iterations(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.usefixtures("ray_local")
def test_ctrl_c_saves_and_resume_goes_on(tiny: TinyRuns, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(MY_REWARDS)
    folder = tmp_path / "runs" / "stopped"
    options = ["run.name=stopped", "rewards.short.function=my_rewards:brief", "ppo.iterations=1000", "kl.coef=0"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (tmp_path / "output.txt").open("w+") as output:
        # A process group of its own stands for the terminal's foreground group, which Ctrl-C signals as a whole.
        run = subprocess.Popen(
            [COMMAND, "ppo", "-c", str(tiny.folder / "ppo.yaml"), *options],
            cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while not iterations(folder) and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
            os.killpg(run.pid, signal.SIGINT)
            code = run.wait(timeout=120)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        output.seek(0)
        text = output.read()
    assert code == 0, text
    assert "stopping after this step and saving" in text
    assert "Traceback" not in text
    last = iterations(folder)[-1]
    assert 1 <= last < 1000
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{last:06d}"]
    saved = load_file(folder / "policy" / "model.safetensors")

    # In this session's Ray, which does not know the other one's working directory.
    changed = [f"ppo.iterations={last + 1}", "rewards.short.function=tiny_rewards:short"]
    done = CliRunner().invoke(main, ["ppo", "--resume", str(folder), *changed])
    assert done.exit_code == 0, done.output
    assert f"resuming after iteration {last}" in done.stdout
    assert iterations(folder) == list(range(1, last + 2))
    resumed = load_file(folder / "policy" / "model.safetensors")
    assert any(not torch.equal(saved[name], resumed[name]) for name in saved)
