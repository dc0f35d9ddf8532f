"""Nodes of a cluster are lost, on Ray's own several-node cluster on one machine; the driver is a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exact_runs import assert_same_run, assert_same_weights, exact, metrics
from ray.cluster_utils import Cluster
from tiny_runs import TinyRuns

from rlhf_ray.config.base import Section
from rlhf_ray.config.load import to_yaml
from rlhf_ray.trainers.sft import SFTTrainer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

#: Ray gives a silent node 15 s and more.
IMPATIENT = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
PATIENCE_S = 500


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that runs the driver and no actors."""
    arguments = {"num_cpus": 0, "include_dashboard": False, "_system_config": IMPATIENT}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()


class Driver:
    """A stage's process; its output lies beside its configuration."""

    def __init__(self, stage: str, config: Section, folder: Path, cluster: Cluster, plan: list[dict[str, Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        (folder / "config.yaml").write_text(to_yaml(config))
        command = [sys.executable, "-m", "rlhf_ray.cli.main", stage, "-c", str(folder / "config.yaml")]
        environment = os.environ | {"RLHF_RAY_FAULTS": json.dumps(plan)}
        with self.output.open("w") as out:
            address = f"resources.ray_address={cluster.address}"
            self.process = subprocess.Popen([*command, address], env=environment, stdout=out, stderr=out)

    def wait_until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.2)

    def finish(self) -> None:
        assert self.process.wait(PATIENCE_S) == 0, self.output.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def stopped_at(marker: Path, actor: str, phase: str, after: int) -> dict[str, Any]:
    """The actor comes so far, and no further, until its node is lost."""
    return {"actor": actor, "phase": phase, "after": after, "action": "hang", "once": str(marker)}


@pytest.mark.usefixtures("ray_local")
def test_without_its_only_node_a_run_waits_for_another_one(cluster: Cluster, tiny: TinyRuns, tmp_path: Path) -> None:
    node, marker = cluster.add_node(num_cpus=2), tmp_path / "reached"
    changes = ["run.exact=true", "checkpoint.every=3", "tracking.tensorboard=false", "resources.threads=2"]
    driver = Driver(
        "sft",
        tiny.sft(tmp_path, "moved", *changes),
        tmp_path / "driver",
        cluster,
        [stopped_at(marker, "learner/0", "update", 5)],
    )
    try:
        undisturbed = SFTTrainer(tiny.sft(tmp_path, "undisturbed", *changes)).train().folder
        driver.wait_until(marker.exists)
        cluster.remove_node(node, allow_graceful=False)
        driver.wait_until(lambda: "waiting up to 1800 s for capacity" in driver.output.read_text())
        cluster.add_node(num_cpus=2)
        driver.finish()
    finally:
        driver.end()
    assert metrics(tmp_path / "moved") == metrics(undisturbed)
    assert_same_weights(tmp_path / "moved", undisturbed)
    lines = [json.loads(line) for line in (tmp_path / "moved" / "failures.jsonl").read_text().splitlines()]
    assert "placing and starting all actors again from iteration 4" in lines[-2]["action"]
    assert lines[-1]["action"] == "recovered"


@pytest.mark.chaos
@pytest.mark.parametrize("cpus", [4, 2])
def test_actors_of_a_lost_node_move_to_what_is_left(
    cluster: Cluster, tiny: TinyRuns, exact_run: Path, tmp_path: Path, cpus: int
) -> None:
    """Of two nodes one is lost, with the actors and the samples on it. On 4 CPUs there is room for the lost places; on
    2 all actors have to be placed anew, in smaller shares."""
    marker = tmp_path / "reached"
    nodes = [cluster.add_node(num_cpus=cpus), cluster.add_node(num_cpus=cpus)]
    share = ["resources.cpus_per_actor=0.5"] if cpus == 4 else []
    config = exact(tiny, tmp_path, "moved", "resources.threads=2", *share)
    driver = Driver("ppo", config, tmp_path / "driver", cluster, [stopped_at(marker, "learner/0", "update", 5)])
    try:
        driver.wait_until(marker.exists)
        cluster.remove_node(_node_of(cluster, nodes, "moved/learner/0"), allow_graceful=False)
        driver.finish()
    finally:
        driver.end()
    assert_same_run(tmp_path / "moved", exact_run, resampled=True)
    lines = [json.loads(line) for line in (tmp_path / "moved" / "failures.jsonl").read_text().splitlines()]
    assert not any(line["cause"] for line in lines[[line["action"] for line in lines].index("recovered") :]), (
        "all that the node took along starts again at once"
    )


def _node_of(cluster: Cluster, nodes: list[Any], actor: str) -> Any:
    """The node that runs a named actor, as the cluster lists it."""
    places = {a["Name"]: a["Address"]["NodeID"] for a in cluster.global_state.actor_table(None).values()}
    return next(node for node in nodes if node.node_id == places[actor])
