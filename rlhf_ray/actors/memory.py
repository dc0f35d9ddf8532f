"""Memory: what a process and its node use, whether an error is the lack of it, and what to lower then."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rlhf_ray import faults
from rlhf_ray.errors import OutOfMemory

GIB = 2**30

#: kind of actor -> what makes it smaller.
ADVICE = {
    "learner": "lower learner.tokens_per_microbatch, set model.gradient_checkpointing=true or model.lora, raise "
    "learner.ranks over more nodes, or set checkpoint.asynchronous=false (no second copy of the state)",
    "generator": "lower generation.cpu_kv_cache_gib (on GPUs generation.gpu_memory_utilization), "
    "generation.max_concurrent_samples or generation.replicas",
    "reference": "lower reference.tokens_per_batch or reference.replicas",
    "reward": "lower this component's tokens_per_batch or replicas, or the memory that its function takes",
    "writer": "lower ppo.prompts_per_iteration or ppo.samples_per_prompt: it holds the rollouts of one iteration",
    "driver": "lower ppo.prompts_per_iteration, or set data.streaming=true for a large set",
}
#: As torch (CPU and CUDA), NumPy, Arrow and C++ put it.
_EXHAUSTED = re.compile(r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc", re.I)


def memory_use() -> dict[str, int]:
    """{"rss_bytes": of this process, "node_used_bytes", "node_bytes": of its node, or the container that limits it}."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    node = {fields[0]: int(fields[1]) * 1024 for fields in lines if fields[0] in ("MemTotal:", "MemAvailable:")}
    used, total = node["MemTotal:"] - node["MemAvailable:"], node["MemTotal:"]
    if (container := _container()) is not None and container[1] < total:
        used, total = container
    return {"rss_bytes": resident, "node_used_bytes": used, "node_bytes": total}


def _container(folder: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(in use without what the kernel can drop, limit) of the control group, in bytes; None where it has no limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        held = int((folder / "memory.current").read_text()) - int(statistics["inactive_file"])
    except OSError:  # no control group of the second version
        return None
    return None if limit == "max" else (held, int(limit))


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    return isinstance(error, MemoryError) or bool(_EXHAUSTED.search(str(error)))


def explained(error: BaseException, doing: str) -> OutOfMemory:
    """The error of this process that ran out of memory: who, doing what, how much, and what to lower."""
    actor = os.environ.get(faults.ACTOR, "driver")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return OutOfMemory(f"{actor} ran out of memory ({doing}): {reason} {shown(memory_use())} {advice(actor)}")


def advice(actor: str) -> str:
    """What to lower for `actor`, <kind>/<index> or <kind>/<name>/<index>."""
    return f"To need less, {ADVICE.get(actor.partition('/')[0], 'give it a larger node')}."


def shown(use: Mapping[str, float]) -> str:
    """`memory_use` in a sentence."""
    resident, used, total = (use[name] / GIB for name in ("rss_bytes", "node_used_bytes", "node_bytes"))
    return f"Its process holds {resident:.1f} GiB, its node has {used:.1f} of {total:.1f} GiB in use."
