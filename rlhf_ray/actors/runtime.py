"""Joining Ray, and starting actors with the names, logs and thread settings they need."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray import faults
from rlhf_ray.actors.environment import process_environment
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import ConfigError, InfrastructureError

NAMESPACE = "rlhf_ray"
CONCURRENCY = 8  # threads of an actor: its work goes to one owned thread, the others answer probes and stream results
#: Seconds in which Ray notices that the driver of an earlier run is gone, and ends its actors.
PREDECESSOR_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """What the Ray cluster offers."""

    cpus: float
    gpus: int
    node_cpus: tuple[float, ...]  # of every node that is alive
    local: bool  # a Ray started for this process, not a cluster that was there before
    started: bool  # by this very call, which makes its caller the one to stop it
    dashboard: str | None

    @property
    def cores_per_node(self) -> int:
        """The cores of the smallest node. A head that runs no actors often says that it has none."""
        return int(min((cpus for cpus in self.node_cpus if cpus >= 1), default=1))

    def present(self) -> "Cluster":
        """The same cluster as it is now: nodes come and go."""
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return replace(
            self,
            cpus=sum(has.get("CPU", 0.0) for has in resources),
            gpus=int(sum(has.get("GPU", 0.0) for has in resources)),
            node_cpus=tuple(has.get("CPU", 0.0) for has in resources),
        )


def connect(resources: ResourcesSection, verbose: bool = False) -> Cluster:
    """Join the configured cluster, or start a local Ray. Raises InfrastructureError where nothing answers."""
    address = resources.ray_address or os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {
            "namespace": NAMESPACE,
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
        }
        if address:
            options["address"] = address
        else:
            options |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "address": "local"}
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise InfrastructureError(
                f"no Ray cluster answers at {address}: {error}. Check the address and `ray status`, or unset "
                "resources.ray_address and RAY_ADDRESS to start a local Ray."
            ) from error
    return Cluster(0, 0, (), local=not address, started=started, dashboard=_dashboard()).present()


def disconnect(cluster: Cluster) -> None:
    """Leave the cluster; a Ray that this `connect` started ends with it."""
    if cluster.started:
        ray.shutdown()


def _dashboard() -> str | None:
    """host:port of the dashboard, where the cluster has one."""
    node = ray._private.worker.global_worker.node
    return node.address_info.get("webui_url") if node is not None else None


@dataclass(frozen=True)
class ActorPlace:
    """Where an actor runs: its bundle of the run's placement group and its share of that bundle."""

    group: Any
    bundle: int
    cpus: float
    gpus: float


class ActorStarter:
    """Starts named, detached-from-nothing actors of one run; each writes its output to the run folder too."""

    def __init__(self, run: str, logs: Path, threads: int) -> None:
        self.run, self.logs, self.threads = run, logs, threads
        self.actors: dict[str, ray.actor.ActorHandle] = {}  # <kind>/<index> -> the actor last started there
        logs.mkdir(parents=True, exist_ok=True)

    def start(
        self, kind: str, index: int, place: ActorPlace, cls: type, *args: Any, environment: dict[str, str] | None = None
    ) -> ray.actor.ActorHandle:
        """A handle to a new actor `<run>/<kind>/<index>` made of the plain class `cls`."""
        key = f"{kind}/{index}"
        name = f"{self.run}/{key}"
        if key in self.actors:  # one that was killed holds its name until the cluster has noticed
            self._await_names([key])
        env_vars = process_environment(self.threads) | faults.actor_environment(key)
        log = self.logs / f"{kind.replace('/', '-')}-{index}.log"
        options: dict[str, Any] = {
            "name": name,
            "num_cpus": place.cpus,
            "num_gpus": place.gpus,
            "max_concurrency": CONCURRENCY,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(place.group, place.bundle),
            "runtime_env": {"env_vars": env_vars | (environment or {})},
        }
        self.actors[key] = actor = ray.remote(_logged(cls)).options(**options).remote(str(log), *args)
        return actor

    def of_kind(self, kind: str) -> dict[str, ray.actor.ActorHandle]:
        """The actors of one kind, by <kind>/<index>."""
        return {name: actor for name, actor in self.actors.items() if name.rpartition("/")[0] == kind}

    def end(self, kind: str | None = None, timeout_s: float = 20.0) -> None:
        """Kill the run's actors, or those of one kind, and wait for their names to be free for those that follow.

        Releasing the placement would kill them too, but this process would go on believing that they hold their names.
        """
        actors = dict(self.actors) if kind is None else self.of_kind(kind)
        for name, actor in actors.items():
            ray.kill(actor)
            del self.actors[name]
        self._await_names(actors, timeout_s)

    def await_predecessor(self, timeout_s: float = PREDECESSOR_S) -> None:
        """Wait until the actors of an earlier process of this run are gone: Ray ends them when it misses their driver.

        Raises:
            InfrastructureError: they stay, so they are those of a run that is going on.
        """
        deadline = time.monotonic() + timeout_s
        while left := [name for name in ray.util.list_named_actors() if name.startswith(f"{self.run}/")]:
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"{left[0]} and {len(left) - 1} more actors of a run named {self.run} are alive in this cluster. "
                    "Wait for that run to end, or choose another run.name."
                )
            time.sleep(0.2)

    def _await_names(self, actors: Iterable[str], timeout_s: float = 20.0) -> None:
        names, deadline = list(actors), time.monotonic() + timeout_s
        while any(map(self._name_taken, names)) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _name_taken(self, actor: str) -> bool:
        """As Ray asks before it creates an actor, and as the cluster lists it."""
        name = f"{self.run}/{actor}"
        try:
            ray.get_actor(name)
        except ValueError:
            return name in ray.util.list_named_actors()
        return True


def _logged(cls: type) -> type:
    """`cls` with a first constructor argument: the file that gets a copy of the process's output."""

    class Logged(cls):
        def __init__(self, log: str, *args: Any) -> None:
            copy_output(log)
            super().__init__(*args)

    Logged.__name__ = Logged.__qualname__ = cls.__name__  # what Ray's dashboard shows
    Logged.__module__ = cls.__module__
    return Logged


def copy_output(path: str) -> None:
    """Send this process's stdout and stderr to `path` as well, through a `tee` process: a crash loses nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    tee = subprocess.Popen(["tee", "-a", path], stdin=subprocess.PIPE)
    assert tee.stdin is not None
    for descriptor in (1, 2):
        os.dup2(tee.stdin.fileno(), descriptor)


def need(cluster: Cluster, what: str, cpus: float, gpus: float) -> None:
    """Refuse what the whole cluster could never hold."""
    if cpus > cluster.cpus + 1e-6 or gpus > cluster.gpus + 1e-6:
        raise ConfigError(
            f"{what} ask for {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {cluster.cpus:g} and {cluster.gpus}. "
            "Lower the replicas or ranks, resources.cpus_per_actor or resources.num_gpus, or join a larger cluster."
        )
