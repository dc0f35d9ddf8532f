"""Who runs where: one placement group per run, refused before anything is loaded when it cannot fit.

On CPUs all actors share the cores and reserve a fraction each. With enough GPUs every actor that computes gets its own;
with fewer, learner rank i, generator i and their helpers share GPU i, which also lets weights travel by CUDA IPC.
"""

from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlhf_ray.actors.runtime import ActorPlace, Cluster, need
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.errors import ConfigError, InfrastructureError


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

    def release(self) -> None:
        """Give the reservation back; Ray ends the actors in it."""
        remove_placement_group(self.group)


@dataclass
class _Bundle:
    cpus: float = 0.0
    gpus: float = 0.0
    members: list[ActorNeed] = field(default_factory=list)


def place(needs: list[ActorNeed], cluster: Cluster, resources: ResourcesSection) -> Placement:
    """Reserve room for all actors of a run at once.

    Raises ConfigError when the cluster is too small for them, InfrastructureError when it is large enough but others
    hold what is needed for longer than resources.start_timeout_s.
    """
    gpus = cluster.gpus if resources.num_gpus is None else resources.num_gpus
    cpus_per_actor = resources.cpus_per_actor or min(1.0, int(100 * cluster.cpus / len(needs)) / 100)
    cpus = cpus_per_actor * len(needs)
    need(cluster, f"{len(needs)} actors", cpus, resources.num_gpus or 0)
    bundles, colocated = _bundles(needs, gpus, cpus_per_actor)
    described = [{"CPU": b.cpus} | ({"GPU": b.gpus} if b.gpus else {}) for b in bundles]
    group = placement_group(described, strategy="PACK")
    try:
        reserved = group.wait(resources.start_timeout_s)
    except BaseException:  # Ctrl-C while waiting: a reservation that nobody holds would block the cluster
        remove_placement_group(group)
        raise
    if not reserved:
        free = ray.available_resources()
        remove_placement_group(group)
        raise InfrastructureError(
            f"waited {resources.start_timeout_s:g} s for {cpus:g} CPUs and {sum(b.gpus for b in bundles):g} GPUs; free "
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


def _bundles(needs: list[ActorNeed], gpus: int, cpus_per_actor: float) -> tuple[list[_Bundle], bool]:
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
