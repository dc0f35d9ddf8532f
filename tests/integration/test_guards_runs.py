"""Guards at work: a run that rolls back, ranks that leave a step out together, actors without memory, taken ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from exact_runs import digests, metrics
from hungry import Hungry
from learner_world import Ranks, Tensors, grouped, largest_difference, ppo_config, rollouts, save_tiny_model, weights
from tiny_runs import TinyRuns

from rlhf_ray.actors import memory_watch
from rlhf_ray.actors.calls import result
from rlhf_ray.actors.memory_watch import MemoryWatch
from rlhf_ray.errors import ActorLost, OutOfMemory
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.learner.trainable import BAD_UPDATES
from rlhf_ray.trainers.failure_log import FAILURES_FILE
from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = pytest.mark.integration

# -- a run -------------------------------------------------------------------------------------------------------------

#: Four rows an iteration, in their order: row 13 comes in the fourth.
ROLLBACK = (
    "run.exact=true",
    "rewards.short.function=tiny_rewards:huge_on_13",
    "data.shuffle=false",
    "ppo={iterations: 5, prompts_per_iteration: 4, samples_per_minibatch: 4}",
    "checkpoint={every: 2, keep_last: 9}",
    "guards.on_bad_update=rollback",
)


@pytest.mark.usefixtures("ray_local")
def test_a_rollback_gives_up_what_was_learned_since_the_checkpoint(tiny: TinyRuns, tmp_path: Path) -> None:
    folder = PPOTrainer(tiny.ppo(tmp_path, "rolled", *ROLLBACK)).train().folder
    lines, published = metrics(folder), digests(folder)
    assert [line["step"] for line in lines if line.get("guards/rolled_back")] == [4]
    assert "loss/policy" not in lines[3]
    versions = [published[f"version-{number:06d}.json"] for number in range(6)]
    assert versions[4] == versions[2]
    assert len(set(versions)) == 5
    batch = pq.read_table(folder / "quarantine" / "update-000004-1-critic.parquet").sort_by("prompt_id")
    assert batch["prompt_id"].to_pylist() == [12, 13, 14, 15]
    assert batch["reward"].to_pylist()[1] == 1e39
    failures = [json.loads(line) for line in (folder / FAILURES_FILE).read_text().splitlines()]
    assert [(line["kind"], line["iteration"]) for line in failures] == [("data", 4)]
    assert failures[0]["action"] == "the learner goes back to iteration 2, the run goes on with the next data"
    state = json.loads((folder / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["attempt"] == 1


# -- ranks -------------------------------------------------------------------------------------------------------------


def skip_a_step(group: LearnerGroup, model: str, folder: Path) -> tuple[list[dict[str, float]], list[Tensors]]:
    """Metrics and weights after a good, a bad and a good update; the bad one's NaN is on one rank only."""
    config = ppo_config(model, ppo={"advantage": "rloo"}, guards={"on_bad_update": "skip"})
    learner = LearnerRank(config, group, 10, folder)
    objective, found, after = learner.ppo("float32"), [], []
    for number in range(3):
        index, fetch = grouped(rollouts(number, 8), 2)
        if number == 1:
            index.reward[0] = np.nan
        found.append(objective.train(index, fetch, PPOIteration(number, 0.1))[0])
        after.append(weights(learner))
    return found, after


def test_all_ranks_leave_out_a_step_that_is_bad_on_one(two: Ranks, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    for found, after in two.run(skip_a_step, model, tmp_path / "quarantine"):
        assert [m.get(BAD_UPDATES) for m in found] == [None, 1.0, None]
        assert largest_difference(after[0], after[1]) == 0
        assert largest_difference(after[1], after[2]) > 0
    kept = pq.read_table(tmp_path / "quarantine" / "update-000002-1-policy.parquet")
    assert sorted(zip(*kept.select(["prompt_id", "sample_index"]).to_pydict().values(), strict=True)) == [
        (prompt, sample) for prompt in range(4) for sample in range(2)
    ]
    assert [bool(np.isnan(a).any()) for a in kept.sort_by("prompt_id")["advantages"].to_pylist()] == [True] * 2 + [
        False
    ] * 6


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_local")
def test_a_killed_actor_s_memory_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = ray.remote(Hungry).options(num_cpus=0, max_concurrency=4).remote()
    with pytest.raises(OutOfMemory, match=r"reference/0 ran out of memory: .* lower reference\.tokens_per_batch"):
        result(actor.allocate.remote(), "reference/0")
    watch = MemoryWatch({"learner/0": actor}, period_s=0.1)
    try:
        while not memory_watch._last_seen:
            time.sleep(0.05)
    finally:
        watch.close()
    monkeypatch.setattr(memory_watch, "PRESSURE", 0.0)
    pid, waiting = ray.get(actor.pid.remote()), actor.wait.remote()
    os.kill(pid, signal.SIGKILL)
    told = r"Probably it was killed for its memory\. When last asked, \d+ s ago: Its process holds 0\.\d GiB, its node "
    with pytest.raises(ActorLost, match=rf"learner/0 was lost: .*{told}.* lower learner\.tokens_per_microbatch"):
        result(waiting, "learner/0")


# -- ports -------------------------------------------------------------------------------------------------------------

CONNECT = """
from rlhf_ray.actors.runtime import connect
from rlhf_ray.config.common import ResourcesSection
print("dashboard at", connect(ResourcesSection()).dashboard)
"""


@pytest.mark.chaos
def test_a_dashboard_finds_another_port_when_its_own_is_taken() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # another has it already: as good
            stranger.bind(("127.0.0.1", 8265))
            stranger.listen()
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        run = subprocess.run(
            [sys.executable, "-c", CONNECT], env=environment, capture_output=True, text=True, timeout=300
        )
    assert run.returncode == 0, run.stderr
    port = int(run.stdout.split("dashboard at 127.0.0.1:")[1])
    assert port not in (0, 8265)
