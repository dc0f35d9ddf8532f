"""Who runs where: one placement group per run, refused before anything is loaded when it cannot fit.

On CPUs all actors share the cores and reserve a fraction each. With enough GPUs every actor that computes gets its own;
with fewer, learner rank i, generator i and their helpers share GPU i, which also lets weights travel by CUDA IPC.

When a node is lost, Ray reserves its bundles anew where there is room for them. Where there is none, the whole run is
placed again, in smaller shares, or waits for capacity to come back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from rlhf_ray.actors.runtime import ActorPlace, Cluster, need
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import ConfigError, InfrastructureError, PlacementLost

#: Seconds in which Ray reserves a lost node's bundles elsewhere if there is room; between two tries to place all anew.
RESCHEDULE_S, RETRY_S = 10.0, 5.0


@dataclass(frozen=True)
class ActorNeed:
    """One actor to place: its kind ("learner", "reward/quality", ...), index, and GPUs if it computes on any."""

    kind: str
    index: int
    gpus: int = 0


@dataclass
class Placement:
    """The reserved places of a run's actors, by (kind, index)."""

    group: PlacementGroup
    places: dict[tuple[str, int], ActorPlace]
    colocated: bool
    gpus: int = 0

    def require_whole(self) -> None:
        """Wait a moment for Ray to reserve a lost node's places elsewhere. Raises PlacementLost if it has not."""
        deadline = time.monotonic() + RESCHEDULE_S
        while (table := placement_group_table(self.group))["state"] != "CREATED":
            if time.monotonic() > deadline:
                alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
                gone = {bundle for bundle, node in table["bundles_to_node_id"].items() if node not in alive}
                names = [f"{kind}/{index}" for (kind, index), place in self.places.items() if place.bundle in gone]
                raise PlacementLost(f"the places of {', '.join(names)} were lost with their node")
            time.sleep(0.5)

    def release(self) -> None:
        """Give the reservation back; Ray ends the actors in it."""
        remove_placement_group(self.group)


@dataclass
class _Bundle:
    cpus: float = 0.0
    gpus: float = 0.0
    members: list[ActorNeed] = field(default_factory=list)


def place(
    needs: Sequence[ActorNeed], cluster: Cluster, resources: ResourcesSection, wait_s: float | None = None
) -> Placement:
    """Reserve room for all actors of a run at once.

    Raises ConfigError when the cluster is too small for them, InfrastructureError when it is large enough but others
    hold what is needed for longer than `wait_s`, default resources.start_timeout_s.
    """
    wait_s = resources.start_timeout_s if wait_s is None else wait_s
    gpus = cluster.gpus if resources.num_gpus is None else resources.num_gpus
    cpus_per_actor = resources.cpus_per_actor or even_share(cluster.node_cpus, len(needs))
    cpus = cpus_per_actor * len(needs)
    need(cluster, f"{len(needs)} actors", cpus, resources.num_gpus or 0)
    bundles, colocated = _bundles(needs, gpus, cpus_per_actor)
    described = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in bundles]
    group = placement_group(described, strategy="PACK")
    try:
        reserved = group.wait(wait_s)
    except BaseException:  # Ctrl-C while waiting: a reservation that nobody holds would block the cluster
        remove_placement_group(group)
        raise
    if not reserved:
        free = ray.available_resources()
        remove_placement_group(group)
        raise InfrastructureError(
            f"waited {wait_s:g} s for {cpus:g} CPUs and {sum(b.gpus for b in bundles):g} GPUs; free "
            f"now: {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs of {cluster.cpus:g} and {cluster.gpus}. "
            "Another job holds them: wait for it, or raise resources.start_timeout_s."
        )
    places = {
        (member.kind, member.index): ActorPlace(
            group, number, bundle.cpus / len(bundle.members), _gpu_share(member, bundle)
        )
        for number, bundle in enumerate(bundles)
        for member in bundle.members
    }
    return Placement(group, places, colocated, gpus)


def place_again(
    needs: Sequence[ActorNeed], cluster: Cluster, resources: ResourcesSection, gpus: bool, warn: Callable[[str], object]
) -> tuple[Cluster, Placement]:
    """What is left of a cluster, and all actors of a run on it; waits for capacity where that is too little.

    `gpus`: the run computes on GPUs, and does not move to CPUs. `warn` hears what is waited for.

    Raises:
        InfrastructureError: there is no room for longer than resources.recovery_timeout_s.
    """
    limit_s, started, told = resources.recovery_timeout_s, time.monotonic(), False
    while True:
        present = cluster.present()
        try:
            if gpus and not present.gpus:
                raise InfrastructureError("the run computes on GPUs, and no node that is left has any")
            return present, place(needs, present, resources, RETRY_S)
        except (ConfigError, InfrastructureError) as error:
            if time.monotonic() - started > limit_s:
                raise InfrastructureError(
                    f"waited {limit_s:g} s (resources.recovery_timeout_s) for the capacity that was lost: {error}"
                ) from error
            if not told:
                warn(f"waiting up to {limit_s:g} s for capacity that was lost to come back: {error}")
                told = True
        time.sleep(RETRY_S)


def even_share(node_cpus: Sequence[float], actors: int) -> float:
    """The largest share of a CPU, in hundredths and at most 1, of which there is one for each actor on some node."""
    for hundredths in range(100, 1, -1):
        if sum(int(100 * cpus + 1e-6) // hundredths for cpus in node_cpus) >= actors:
            return hundredths / 100
    return 0.01


def _bundles(needs: Sequence[ActorNeed], gpus: int, cpus_per_actor: float) -> tuple[list[_Bundle], bool]:
    """Bundles for the placement group, and whether actors share GPUs."""
    plain = [_Bundle(cpus_per_actor, 0, [n]) for n in needs if not n.gpus or not gpus]
    if not gpus and (spanning := [n for n in needs if n.gpus > 1]):
        raise ConfigError(
            f"generation.tensor_parallel_size: {spanning[0].gpus} asks for as many GPUs per engine, the run has none"
        )
    if not gpus:
        return plain, False
    heavy = [n for n in needs if n.gpus]
    if sum(n.gpus for n in heavy) <= gpus:
        return plain + [_Bundle(cpus_per_actor, n.gpus, [n]) for n in heavy], False
    if any(n.gpus > 1 for n in heavy):
        raise ConfigError(
            f"the actors ask for {sum(n.gpus for n in heavy)} GPUs of their own and {gpus} are available; engines that "
            "span several GPUs cannot share them. Lower generation.tensor_parallel_size, replicas or learner.ranks."
        )
    ranks = sum(n.kind == "learner" for n in heavy)
    if ranks > gpus:
        raise ConfigError(
            f"learner.ranks: {ranks} ranks need a GPU each (NCCL takes one rank per device), and there are {gpus} "
            "GPU(s). Lower learner.ranks."
        )
    slots = [_Bundle(0, 1, []) for _ in range(gpus)]
    for member in heavy:
        slot = slots[member.index % gpus]
        slot.cpus += cpus_per_actor
        slot.members.append(member)
    return plain + [slot for slot in slots if slot.members], True


def _gpu_share(member: ActorNeed, bundle: _Bundle) -> float:
    """A shared GPU is split evenly as far as Ray's accounting goes; memory is bounded by each actor's own settings."""
    if not bundle.gpus or not member.gpus:
        return 0.0
    return float(member.gpus) if len(bundle.members) == 1 else int(1000 / len(bundle.members)) / 1000
