"""The launch scripts: a real head with token authentication, submitted jobs, and the PPO stage as one of them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import REPOSITORY, RayHead, ray_head
from tiny_runs import TinyRuns

pytestmark = pytest.mark.integration

NAMED_ACTOR_JOB = """
import sys, time
from pathlib import Path
import ray

ray.init(namespace="rlhf_ray", log_to_driver=False)

@ray.remote(num_cpus=0)
class Generator:
    def ready(self):
        return True

actor = Generator.options(name="run/generator/0").remote()
print("ready", ray.get(actor.ready.remote(), timeout=60), flush=True)
end, deadline = Path(sys.argv[1]), time.monotonic() + 120
while not end.exists() and time.monotonic() < deadline:
    time.sleep(0.2)
"""

RUN_ACTORS = {"generator/0", "learner/0", "reference/0", "reward/short/0", "writer/0"}

RELATIVE_ROOT_JOB = """
from rlhf_ray.config.common import RunSection
from rlhf_ray.trainers.run_folder import RunFolder

RunFolder.create(RunSection(name="lost"), "ppo")
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running
    assert running.processes() == []


def test_the_dashboard_wants_a_token_and_listens_on_loopback_only(head: RayHead) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.dashboard}/api/version", timeout=10)
    assert refused.value.code == 401
    assert head.get("/api/version")["ray_version"]
    port = int(head.dashboard.rsplit(":", 1)[1])
    outside = socket.gethostbyname(socket.gethostname())
    if not outside.startswith("127."):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((outside, port), timeout=5)


def test_actors_of_a_submitted_job_are_found_by_name(head: RayHead, tmp_path: Path) -> None:
    folder, end = tmp_path / "job", tmp_path / "end"
    folder.mkdir()
    (folder / "job.py").write_text(NAMED_ACTOR_JOB)
    with subprocess.Popen(
        head.submit_command(folder, sys.executable, "job.py", str(end)),
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        try:
            deadline = time.monotonic() + 120
            actors: dict[str, str] = {}
            while actors.get("run/generator/0") != "ALIVE" and job.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
                actors = head.actors()
        finally:
            end.touch()
        output, _ = job.communicate(timeout=120)
    assert actors == {"run/generator/0": "ALIVE"}, output
    assert job.returncode == 0, output


def test_a_relative_run_root_is_refused_inside_a_job(head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(RELATIVE_ROOT_JOB)
    done = head.submit(tmp_path, sys.executable, "job.py")
    assert done.returncode != 0
    assert "run.root: 'runs' is relative, but a submitted job runs in a temporary copy" in done.stdout


def test_a_submitted_run_shows_its_actors_and_outlives_the_job(head: RayHead, tiny: TinyRuns, tmp_path: Path) -> None:
    working_dir, root = tmp_path / "job", tmp_path / "runs"
    working_dir.mkdir()
    text = (tiny.folder / "ppo.yaml").read_text().replace("tiny_rewards:", "rules:")
    (working_dir / "ppo.yaml").write_text(text)
    rewards = REPOSITORY / "tests" / "integration" / "tiny_rewards.py"
    (working_dir / "rules.py").write_text(rewards.read_text())  # travels with the job
    environment = {key: value for key, value in head.environment.items() if key != "PYTHONPATH"}
    environment |= {"RAY_API_SERVER_ADDRESS": head.dashboard, "RUN_ROOT": str(root)}
    submit = [str(REPOSITORY / "launch" / "submit_ppo.sh"), "--config", "ppo.yaml", "run.name=job"]

    def run_actors() -> dict[str, str]:
        return {name: state for name, state in head.actors().items() if name.startswith("job/")}

    seen: dict[str, str] = {}
    with subprocess.Popen(
        submit, cwd=working_dir, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        deadline = time.monotonic() + 300
        while job.poll() is None and time.monotonic() < deadline:
            seen |= {name: state for name, state in run_actors().items() if state == "ALIVE"}
            time.sleep(0.5)
        output, _ = job.communicate(timeout=10)
    assert job.returncode == 0, output
    assert set(seen) == {f"job/{actor}" for actor in RUN_ACTORS}
    assert set(run_actors().values()) == {"DEAD"}
    metrics = [json.loads(line) for line in (root / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    assert (root / "job" / "policy" / "model.safetensors").exists()
    starts = json.loads((root / "job" / "environment.json").read_text())
    assert starts[0]["submitted_as_job"] is True
    assert os.listdir(root / "job" / "rollouts")


def test_other_sessions_do_not_meet_the_head(head: RayHead) -> None:
    """A `ray.init()` without an address would not join it, though it runs on the same machine."""
    code = "from ray._private.services import canonicalize_bootstrap_address as find; print(find(None))"
    environment = {key: value for key, value in head.environment.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    port = head.gcs.rsplit(":", 1)[1]
    assert not done.stdout.strip().endswith(f":{port}")


def test_submit_refuses_a_relative_root_and_a_missing_head(tmp_path: Path) -> None:
    script = REPOSITORY / "launch" / "submit_ppo.sh"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    nothing = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert nothing.returncode == 1
    assert "no Ray to submit to" in nothing.stderr
    environment |= {"RUN_ROOT": "runs", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    relative = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert relative.returncode == 2
    assert "RUN_ROOT must be an absolute path" in relative.stderr


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_stop_leaves_a_process_alone_that_is_not_the_head(tmp_path: Path) -> None:
    """The recorded id may have been given to somebody else since."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (tmp_path / "pid").write_text(str(bystander.pid))
        script = REPOSITORY / "launch" / "local_ray.sh"
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RLHF_RAY_STATE": str(tmp_path)}
        done = subprocess.run(
            [script, "stop"], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.stdout == "not running\n"
        assert bystander.poll() is None
        bystander.terminate()
