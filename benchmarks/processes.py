"""What the processes of a run hold, read from /proc: resident memory, file descriptors, threads."""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from side import marked

from rlhf_ray.faults import ACTOR


@dataclass
class Holding:
    """Of an actor's process and its children: MiB resident without shared pages, descriptors, threads."""

    memory_mib: float = 0.0
    descriptors: int = 0
    threads: int = 0
    pid: int = 0  # of the actor itself: the eldest


def holdings(mark: str) -> dict[str, Holding]:
    """<kind>/<index>, or "driver" for this process -> what it holds now; `mark`: see `side.marked`."""
    found: defaultdict[str, Holding] = defaultdict(Holding)
    _add(found["driver"], os.getpid())
    for pid in sorted(marked(mark)):
        try:
            if (actor := _actor(pid)) is not None:
                _add(found[actor], pid)
        except OSError:  # gone meanwhile
            continue
    return dict(found)


def _actor(pid: int) -> str | None:
    name = f"{ACTOR}=".encode()
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v.removeprefix(name).decode() for v in variables if v.startswith(name)), None)


def _add(holding: Holding, pid: int) -> None:
    """Pages of the object store are shared, and counted as its own use."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in status:  # a zombie
        return
    holding.memory_mib += (int(status["VmRSS"][0]) - int(status["RssShmem"][0])) / 1024
    holding.descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    holding.threads += int(status["Threads"][0])
    holding.pid = holding.pid or pid
