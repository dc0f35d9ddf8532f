"""A Ray head of a test's own, started and stopped by launch/local_ray.sh: own ports, folder and token.

Other Ray sessions on the machine do not meet it, and it ends by its recorded process, never by `ray stop`.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class RayHead:
    """Where the head is, and the environment that its clients need."""

    dashboard: str
    gcs: str
    environment: dict[str, str]
    pid: int
    folder: Path

    def submit_command(self, working_dir: Path, *entrypoint: str) -> list[str]:
        """The command that submits a job and follows it to its end; to be run in `environment`."""
        options = ["--address", self.dashboard, "--working-dir", str(working_dir)]
        return [str(RAY), "job", "submit", *options, "--", *entrypoint]

    def submit(self, working_dir: Path, *entrypoint: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a job to its end; its log is in the result's stdout."""
        return subprocess.run(
            self.submit_command(working_dir, *entrypoint),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def get(self, path: str, timeout_s: float = 30) -> Any:
        """The dashboard's JSON answer to a request with the token."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.dashboard + path, headers=token)
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)

    def actors(self) -> dict[str, str]:
        """The name and state of every named actor but Ray's own, from Ray's state API."""
        listed = self.get("/api/v0/actors?detail=true")["data"]["result"]["result"]
        named = {actor["name"]: actor["state"] for actor in listed if actor["name"]}
        return {name: state for name, state in named.items() if not name.startswith("_ray_internal")}

    def processes(self) -> list[int]:
        """The processes of this head: those whose command names its folder, and the head itself."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            except OSError:
                continue
            if str(self.folder) in command:
                found.append(int(entry.name))
        return found


@contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[RayHead]:
    """A running head; ended, with everything it started, when the block ends."""
    # Ray's socket paths must stay under 108 characters, which pytest's tmp_path does not leave room for.
    with tempfile.TemporaryDirectory(prefix="rh", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port, dashboard_port, agent_port, client_port = _free_ports(4)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_PORT": str(port),
            "DASHBOARD_PORT": str(dashboard_port),
            "RAY_TEMP_DIR": str(folder / "ray"),
            "RLHF_RAY_STATE": str(folder / "state"),
        }
        script = REPOSITORY / "launch" / "local_ray.sh"
        options = {
            "num-cpus": num_cpus,
            "dashboard-agent-listen-port": agent_port,
            "ray-client-server-port": client_port,
        }
        arguments = [f"--{key}={value}" for key, value in options.items()]
        log = folder / "start.log"
        with log.open("w") as out:
            subprocess.run(
                [script, "start", *arguments], env=environment, stdout=out, stderr=out, timeout=240, check=False
            )
        pid_file = folder / "state" / "pid"
        assert pid_file.exists(), log.read_text()
        pid = int(pid_file.read_text())
        head = RayHead(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{port}", environment, pid, folder / "ray")
        try:
            yield head
        finally:
            subprocess.run([script, "stop"], env=environment, capture_output=True, timeout=120, check=False)
            _end_what_is_left(head)


def _end_what_is_left(head: RayHead) -> None:
    """Kill what outlived the head, by process id; normally nothing."""
    deadline = time.monotonic() + 15
    while (left := head.processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
