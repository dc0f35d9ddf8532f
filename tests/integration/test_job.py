"""The PPO stage as a submitted job on a real head: its actors in Ray's state API while it runs, its run outlives it."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from ray_head import REPOSITORY, ray_head
from tiny_runs import TinyRuns

pytestmark = pytest.mark.integration

ACTORS = {"generator/0", "learner/0", "reference/0", "reward/short/0", "writer/0"}


def test_a_submitted_run_shows_its_actors_and_outlives_the_job(tiny: TinyRuns, tmp_path: Path) -> None:
    working_dir, root = tmp_path / "job", tmp_path / "runs"
    working_dir.mkdir()
    text = (tiny.folder / "ppo.yaml").read_text().replace("tiny_rewards:", "rules:")
    (working_dir / "ppo.yaml").write_text(text)
    rewards = REPOSITORY / "tests" / "integration" / "tiny_rewards.py"
    (working_dir / "rules.py").write_text(rewards.read_text())  # travels with the job
    with ray_head() as head:
        environment = {key: value for key, value in head.environment.items() if key != "PYTHONPATH"}
        environment |= {"RAY_API_SERVER_ADDRESS": head.dashboard, "RUN_ROOT": str(root)}
        submit = [str(REPOSITORY / "launch" / "submit_ppo.sh"), "--config", "ppo.yaml", "run.name=job"]
        seen: dict[str, str] = {}
        with subprocess.Popen(
            submit, cwd=working_dir, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job:
            deadline = time.monotonic() + 300
            while job.poll() is None and time.monotonic() < deadline:
                seen |= {name: state for name, state in head.actors().items() if state == "ALIVE"}
                time.sleep(0.5)
            output, _ = job.communicate(timeout=10)
        assert job.returncode == 0, output
        assert set(seen) == {f"job/{actor}" for actor in ACTORS}
        assert "DEAD" in head.actors().values()
        assert "ALIVE" not in head.actors().values()

        relative = head.submit(
            working_dir, "rlhf-ray", "ppo", "--config", "ppo.yaml", "run.root=runs", "run.name=relative"
        )
        assert relative.returncode != 0
        assert "run.root: 'runs' is relative, but a submitted job runs in a temporary copy" in relative.stdout
    metrics = [json.loads(line) for line in (root / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    assert (root / "job" / "policy" / "model.safetensors").exists()
    starts = json.loads((root / "job" / "environment.json").read_text())
    assert starts[0]["submitted_as_job"] is True
    assert os.listdir(root / "job" / "rollouts")
