"""The checks of `rlhf-ray doctor`. What imports torch, Ray or vLLM runs in child processes with a deadline.

A child that crashes, hangs or floods the console while importing is then one finding among others.
"""

import enum
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_ray import __version__

GIB = 1024**3
#: The demo's measured need is well under this; less may still do for smaller models.
MEMORY_GIB, SHM_GIB, DISK_GIB = 10, 2, 10


class Level(enum.Enum):
    GOOD = enum.auto()
    WARNING = enum.auto()
    MISSING = enum.auto()


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, what was found, and what to do about it where something should be done."""

    name: str
    found: str
    level: Level = Level.GOOD
    advice: str = ""


def run_checks(address: str | None, timeout_s: float) -> list[Check]:
    """All findings, in the order in which a person would ask. `address`: a Ray cluster to reach, or the default."""
    slow: list[Callable[[], Check]] = [
        lambda: check_torch(timeout_s),
        lambda: check_ray(address, timeout_s),
        lambda: check_vllm(timeout_s),
    ]
    with ThreadPoolExecutor(len(slow)) as pool:
        probes = [pool.submit(check) for check in slow]
        quick = [check_python(), check_packages(), check_bytecode(), check_processor(), check_memory(), check_shm()]
        return [*quick, check_disk(), check_compiler(), check_hub(), *(probe.result() for probe in probes)]


def check_python() -> Check:
    return Check("python", f"{platform.python_version()} at {sys.executable}, rlhf-ray {__version__}")


def check_packages() -> Check:
    needed = ("transformers", "peft", "datasets", "pyarrow", "tokenizers", "tensorboard")
    optional = ("wandb", "mlflow-skinny", "bitsandbytes", "lm-eval", "onnx", "onnxruntime")
    found = {name: _version(name) for name in (*needed, *optional)}
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    absent = [name for name in needed if found[name] is None]
    if absent:
        return Check("packages", text, Level.MISSING, f"pip install {' '.join(absent)}")
    return Check("packages", text)


def check_bytecode() -> Check:
    """Whether Python finds its packages compiled. torch stands for all of them."""
    torch = find_spec("torch")
    if torch is None or torch.cached is None or torch.origin is None or Path(torch.cached).exists():
        return Check("bytecode", "kept")
    site = Path(torch.origin).parents[1]
    if not sys.dont_write_bytecode and os.access(sys.pycache_prefix or site, os.W_OK):
        return Check("bytecode", "kept from the first import on")
    advice = f"Each actor starts seconds later for it: unset PYTHONDONTWRITEBYTECODE, or python -m compileall -q {site}"
    return Check("bytecode", "packages are compiled anew in every process", Level.WARNING, advice)


def check_processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    level = vector_level(named.get("flags", "").split())
    found = f"{cores} cores, {named.get('model name', platform.processor() or platform.machine())}"
    if platform.machine() not in ("x86_64", "AMD64"):
        return Check("processor", found)
    if level is None:
        return Check("processor", found, Level.WARNING, "vLLM on this CPU needs AVX2 or AVX-512; on a GPU it does not.")
    return Check("processor", f"{found}, {level}")


def vector_level(flags: list[str]) -> str | None:
    """The best vector instructions among /proc/cpuinfo's flags that matter here; None for less than AVX2."""
    have = set(flags)
    if "avx512f" in have:
        extras = {"avx512_bf16": "bf16", "avx512_vnni": "VNNI", "amx_bf16": "AMX"}
        names = [name for flag, name in extras.items() if flag in have]
        return "AVX-512" + (f" with {', '.join(names)}" if names else "")
    return "AVX2" if "avx2" in have else None


def check_memory() -> Check:
    info = Path("/proc/meminfo")
    if not info.exists():
        return Check("memory", "unknown", Level.WARNING, "This system has no /proc/meminfo.")
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in info.read_text().splitlines()}
    total, free = values["MemTotal"], values["MemAvailable"]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (bound := limit.read_text().strip()).isdigit():
        total, free = min(total, int(bound)), min(free, int(bound))
    found = f"{free / GIB:.1f} GiB available of {total / GIB:.1f}"
    if free < MEMORY_GIB * GIB:
        return Check("memory", found, Level.WARNING, f"The demo is made for {MEMORY_GIB} GiB; stop other programs.")
    return Check("memory", found)


def check_shm() -> Check:
    shm = Path("/dev/shm")
    if not shm.exists():
        return Check("/dev/shm", "none", Level.WARNING, "Ray keeps its objects in /tmp instead, which is slower.")
    free = shutil.disk_usage(shm).free
    if free < SHM_GIB * GIB:
        advice = f"Ray's object store wants {SHM_GIB} GiB or more here; in Docker: --shm-size={SHM_GIB}g."
        return Check("/dev/shm", f"{free / GIB:.1f} GiB free", Level.WARNING, advice)
    return Check("/dev/shm", f"{free / GIB:.1f} GiB free")


def check_disk() -> Check:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{free / GIB:.0f} GiB free in {here}"
    if not os.access(here, os.W_OK):
        return Check("disk", found, Level.WARNING, "This folder cannot be written: give run.root another place.")
    if free < DISK_GIB * GIB:
        return Check("disk", found, Level.WARNING, "Checkpoints and rollouts may not fit: give run.root another place.")
    return Check("disk", found)


def check_compiler() -> Check:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        return Check("C++ compiler", "none", Level.WARNING, "torch.compile needs one: apt-get install g++")
    return Check("C++ compiler", found)


def check_hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return Check("model hub", "offline (HF_HUB_OFFLINE=1): local folders and cached models only")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    token = bool(os.environ.get("HF_TOKEN")) or (home / "token").exists()
    return Check("model hub", f"cache {home}, {'token found' if token else 'no token (only gated models need one)'}")


TORCH_PROBE = """
import torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
report = {"version": torch.__version__, "gpus": gpus, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
"""


def check_torch(timeout_s: float) -> Check:
    report = _probe(TORCH_PROBE, timeout_s)
    if isinstance(report, str):
        return Check("torch", report, Level.MISSING, "make install, or pip install torch (see https://pytorch.org)")
    gpus = report["gpus"]
    devices = f"{len(gpus)} x {gpus[0]}, CUDA {report['cuda']}" if gpus else f"no GPU, {report['threads']} threads"
    return Check("torch", f"{report['version']}, {devices}")


RAY_PROBE = """
import os, ray
address = {address!r} or os.environ.get("RAY_ADDRESS") or "local"
local = {{"num_cpus": 1, "include_dashboard": False}} if address == "local" else {{}}
ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
one = ray.get(ray.remote(num_cpus=0)(lambda: 1).remote(), timeout={timeout_s})
total = ray.cluster_resources()
report = {{"version": ray.__version__, "address": address, "nodes": len(ray.nodes()), "resources": total}}
ray.shutdown()
"""


def check_ray(address: str | None, timeout_s: float) -> Check:
    report = _probe(RAY_PROBE.format(address=address, timeout_s=timeout_s), timeout_s)
    if isinstance(report, str):
        if _version("ray") is None:
            return Check("ray", "not installed", Level.MISSING, "pip install 'ray[default]'")
        advice = (
            "Is the address right, and RAY_AUTH_MODE=token set with the cluster's token in ~/.ray/auth_token?"
            if address or os.environ.get("RAY_ADDRESS")
            else "A local Ray did not start: see /tmp/ray/session_latest/logs."
        )
        return Check("ray", f"{_version('ray')}: {report}", Level.MISSING, advice)
    if report["address"] == "local":
        return Check("ray", f"{report['version']}, a local Ray starts and runs a task")
    resources = report["resources"]
    size = f"{report['nodes']} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    return Check("ray", f"{report['version']}, reached {report['address']}: {size}")


VLLM_PROBE = """
import vllm
from vllm.platforms import current_platform
report = {"version": vllm.__version__, "platform": current_platform.device_type}
"""


def check_vllm(timeout_s: float) -> Check:
    report = _probe(VLLM_PROBE, timeout_s)
    install = "pip install 'rlhf-ray[cpu]' on a machine without a GPU, 'rlhf-ray[gpu]' with one"
    if isinstance(report, str):
        return Check("vllm", report, Level.MISSING, install)
    if not report["platform"]:
        return Check("vllm", f"{report['version']}, no usable device", Level.MISSING, install)
    if not any(entry.value.startswith("rlhf_ray.") for entry in metadata.entry_points(group="vllm.general_plugins")):
        advice = "Its plugin entry point is absent: install this package (pip install -e .) rather than import it."
        return Check("vllm", f"{report['version']}, but rlhf_ray is not registered", Level.MISSING, advice)
    return Check("vllm", f"{report['version']} on {report['platform']}")


def _probe(code: str, timeout_s: float) -> dict[str, Any] | str:
    """What `code` leaves in `report`, run by a fresh Python; or the last line of what went wrong."""
    script = f"{code}\nimport json, sys\nsys.__stdout__.write('\\n' + json.dumps(report))"
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **quiet},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {done.returncode}"
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
