"""The parent's handle on one sandbox child: start it, exchange bytes with deadlines, see its stack, kill it for sure.

Linux only (signal-driven descriptors, waitid). The child leads its own process group and session: Ctrl-C at the
terminal does not reach it, and whatever it started dies with it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from time import monotonic

from rlhf_ray.rewards.wire import Result, take_results

_CALLER_FILE = "rlhf_ray/rewards/calling.py"
_LIVENESS_S = 0.5  # how often to look whether the child still lives, should a grandchild hold the results pipe open


class WorkerProcess:
    """One running `python -m rlhf_ray.rewards.worker`. Not thread-safe."""

    def __init__(self) -> None:
        calls, results, lifeline, stacks = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        childs = [calls[0], results[1], lifeline[0], stacks[1]]
        # As file objects they close with us, and a closed lifeline kills the child even if nobody called kill().
        self._calls = os.fdopen(calls[1], "wb", buffering=0)
        self._results = os.fdopen(results[0], "rb", buffering=0)
        self._lifeline = os.fdopen(lifeline[1], "wb", buffering=0)
        self._stacks = os.fdopen(stacks[0], "rb", buffering=0)
        for stream in (self._calls, self._results, self._stacks):
            os.set_blocking(stream.fileno(), False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlhf_ray.rewards.worker", *map(str, childs)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=childs,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path())},
            )
        finally:
            for fd in childs:
                os.close(fd)
        self._outbox = bytearray()
        self._inbox = bytearray()
        self.ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_unsent(self) -> bool:
        return bool(self._outbox)

    def send(self, data: bytes) -> None:
        """Queue `data`; `receive` writes it, since a busy child may not read before it has been killed."""
        self._outbox += data

    def receive(self, timeout_s: float) -> list[Result]:
        """Results that have arrived, waiting up to `timeout_s` for the first. Sets `ended` when no more can come."""
        deadline = monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._results, select.POLLIN)
        while True:
            self._write_some()
            if self._outbox:
                poller.register(self._calls, select.POLLOUT)
            else:
                with contextlib.suppress(KeyError):
                    poller.unregister(self._calls)
            left = deadline - monotonic()
            events = poller.poll(max(0.0, min(left, _LIVENESS_S)) * 1000)
            died = not events and self.has_exited()  # looked at before the last read, or a result could be lost
            self.ended = self._read_some() or died
            if (results := take_results(self._inbox)) or self.ended or left <= 0:
                return results

    def has_exited(self) -> bool:
        """Whether the child is dead, without reaping it."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def interrupt(self) -> str:
        """Kill a child that hangs; where it was, as faulthandler prints it (empty if it could not say)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        stack = self._read_stack(first_line_within_s=1.0)
        self.kill()
        return stack

    def autopsy(self) -> tuple[str, str]:
        """After `ended`: how the child ended, in words, and its last stack if it crashed. Kills what it left behind."""
        deadline = monotonic() + 2.0  # the end of the stream comes a moment before the exit status
        while not self.has_exited() and monotonic() < deadline:
            time.sleep(0.005)
        had_exited = self.has_exited()
        stack = self._read_stack(first_line_within_s=0.0)
        self.kill()
        return _exit_in_words(self._process.returncode) if had_exited else "closed its pipes to the trainer", stack

    def kill(self) -> None:
        """SIGKILL the whole process group and close the pipes. May be called twice."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # before the exit is reaped: the group's number cannot be reused
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        for stream in (self._calls, self._results, self._lifeline, self._stacks):
            stream.close()

    def _write_some(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._outbox:
                del self._outbox[: os.write(self._calls.fileno(), self._outbox[:65536])]

    def _read_some(self) -> bool:
        """Read what is there into the inbox; whether the stream has ended."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._results.fileno(), 65536):
                self._inbox += piece
            return True
        return False

    def _read_stack(self, first_line_within_s: float) -> str:
        """What faulthandler wrote, most recent call first, without the lines of the caller itself."""
        dump = bytearray()
        poller = select.poll()
        poller.register(self._stacks, select.POLLIN)
        wait_s = first_line_within_s
        while poller.poll(wait_s * 1000) and (piece := self._stacks.read(65536)):
            dump += piece
            wait_s = 0.05  # the lines of one dump follow each other at once
        lines = dump.decode(errors="replace").splitlines()
        ours = next((i for i, line in enumerate(lines) if _CALLER_FILE in line), len(lines))
        return "\n".join(lines[:ours]).strip()


def _search_path() -> list[str]:
    """Our own module search path with the working directory, so that the child imports what we can."""
    path = [entry or os.getcwd() for entry in sys.path]
    return path if os.getcwd() in path else [*path, os.getcwd()]


def _exit_in_words(returncode: int) -> str:
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hints = {"SIGKILL": " (the kernel does this when memory runs out)", "SIGSEGV": " (a crash in compiled code)"}
    return f"was killed by {name}{hints.get(name, '')}"
