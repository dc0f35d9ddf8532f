"""Memory: what is measured, how its lack is recognised, and what a person is told."""

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError

from rlhf_ray import faults
from rlhf_ray.actors import memory, memory_watch
from rlhf_ray.actors.calls import cause_of_death
from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.errors import OutOfMemory

pytestmark = pytest.mark.unit

HUGE = 2**60
GIB = memory.GIB


def test_memory_use_is_that_of_this_process_and_its_node():
    before = memory.memory_use()
    ballast = np.ones(64 * 2**20, dtype=np.uint8)
    after = memory.memory_use()
    assert after["rss_bytes"] - before["rss_bytes"] > 0.9 * len(ballast)
    assert 0 < after["rss_bytes"] < after["node_bytes"]
    assert 0 < after["node_used_bytes"] < after["node_bytes"]


def test_a_container_with_a_limit_is_the_node(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert memory._container(tmp_path) == (600, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container(tmp_path) is None
    assert memory._container(tmp_path / "none") is None


def cuda_runs_out():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(HUGE, dtype=torch.uint8),
        lambda: np.empty(HUGE, dtype=np.uint8),
        lambda: bytearray(HUGE),
        cuda_runs_out,
    ],
    ids=["torch", "numpy", "python", "cuda"],
)
def test_every_library_s_lack_of_memory_is_told_in_one_way(monkeypatch, allocate):
    monkeypatch.setenv(faults.ACTOR, "learner/1")
    with pytest.raises(OutOfMemory) as raised:
        OwnedThread().call("training iteration 3", allocate)
    text = str(raised.value)
    assert text.startswith("learner/1 ran out of memory (training iteration 3): ")
    assert "Its process holds" in text
    assert "lower learner.tokens_per_microbatch" in text
    assert raised.value.__cause__ is not None


def test_other_errors_stay_what_they_are():
    def work():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        OwnedThread().call("training", work)


@pytest.mark.parametrize(
    ("actor", "key"),
    [
        ("generator/0", "generation.cpu_kv_cache_gib"),
        ("reference/2", "reference.tokens_per_batch"),
        ("reward/quality/0", "tokens_per_batch"),
        ("writer/0", "ppo.prompts_per_iteration"),
        ("driver", "data.streaming"),
        ("harness/0", "a larger node"),
    ],
)
def test_advice_names_keys_of_the_actor_s_own(actor, key):
    assert key in memory.advice(actor)


@pytest.fixture
def seen():
    """learner/0 (id `a`) had 2 of 10 GiB when its node used so many."""

    def node(used):
        memory_watch.note(
            "learner/0", "a", {"rss_bytes": 2 * GIB, "node_used_bytes": used * GIB, "node_bytes": 10 * GIB}
        )

    yield node
    memory_watch._last_seen.clear()


def test_a_killed_actor_on_a_full_node_probably_had_no_memory(seen):
    seen(9)
    text = cause_of_death(RayActorError("a", "first\nThe process was killed by SIGKILL."))
    assert text.startswith("The process was killed by SIGKILL. Probably it was killed for its memory. When last asked")
    assert "Its process holds 2.0 GiB, its node has 9.0 of 10.0 GiB in use. To need less, lower learner." in text


def test_a_killed_actor_with_room_to_spare_was_killed_by_something_else(seen):
    seen(5)
    assert cause_of_death(RayActorError("a", "killed by SIGKILL.")) == "killed by SIGKILL."
    assert cause_of_death(RayActorError("unknown", "killed by SIGKILL.")) == "killed by SIGKILL."


def test_what_ray_killed_for_its_memory_is_no_guess(seen):
    seen(5)
    told = "1 worker(s) were killed due to the node running low on memory."
    assert "Probably" not in cause_of_death(RayActorError("a", told))
    assert "its node has 5.0 of 10.0 GiB" in cause_of_death(RayActorError("a", told))
    many = f"The actor died.\n{told}\nRefer to the documentation."
    assert cause_of_death(RayActorError("unknown", many)) == f"{told} Its node had run out of memory."


def test_health_answers_carry_the_memory():
    health = OwnedThread().health()
    assert health.keys() == {"state", "since_s", "rss_bytes", "node_used_bytes", "node_bytes"}
