"""The learner ranks as one: every call goes to all of them, rank 0's answer counts."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rlhf_ray.actors.calls import call_all, cause_of_death, wait_all
from rlhf_ray.config.common import ResourcesSection
from rlhf_ray.files import FileDigest


class LearnerRanks:
    """Handles of `Learner` actors in rank order."""

    def __init__(
        self, actors: list[ActorHandle], resources: ResourcesSection, require_places: Callable[[], None]
    ) -> None:
        """`require_places` raises where ranks that start wait for places that are gone with their node."""
        self.actors, self._resources, self._require_places = actors, resources, require_places
        self.doing = "load"  # the method last called

    def call(self, what: str, method: str, *arguments: Any, deadline_s: float | None = None) -> Any:
        """Rank 0's result of `method` on every rank; `what` names the wait in errors."""
        self.doing, deadline_s = method, deadline_s or self._resources.call_timeout_s
        return call_all(self.actors, "learner", what, method, *arguments, deadline_s=deadline_s)[0]

    def join(self, total_steps: int) -> dict[str, Any]:
        """Form the group and load the models."""
        return self.finish_join(self.begin_join(total_steps))

    def begin_join(self, total_steps: int) -> list[ray.ObjectRef]:
        """Start what `join` does, to be awaited by `finish_join`."""
        address = self._ask_first("meeting_point")
        return [actor.join.remote(address, total_steps) for actor in self.actors]

    def address(self) -> str:
        """A free host:port on rank 0's node."""
        return self._ask_first("address")

    def _ask_first(self, method: str) -> str:
        return str(self._started([getattr(self.actors[0], method).remote()], "starting")[0])

    def finish_join(self, joining: list[ray.ObjectRef]) -> dict[str, Any]:
        return dict(self._started(joining, "loading the model")[0])

    def _started(self, refs: list[ray.ObjectRef], what: str) -> list[Any]:
        """The answers of ranks that may have to be placed first."""
        deadline_s, meanwhile = self._resources.start_timeout_s, self._require_places
        return wait_all(refs, self.actors, "learner", what, deadline_s=deadline_s, meanwhile=meanwhile)

    def snapshot(self) -> None:
        """Have every rank copy its state for a checkpoint."""
        self.call("copying its state", "snapshot")

    def save(self, folder: Path, from_snapshot: bool = False) -> list[dict[str, FileDigest]]:
        """Write a checkpoint's shards, of the last snapshot or of the state as it is; each rank's files, by name."""
        what, deadline_s = "saving a checkpoint", self._resources.call_timeout_s
        return call_all(self.actors, "learner", what, "save", str(folder), from_snapshot, deadline_s=deadline_s)

    def load(self, folder: Path) -> None:
        self.call("loading a checkpoint", "load", str(folder))

    def export(self, folder: Path, *arguments: Any) -> None:
        self.call("exporting the model", "export", str(folder), *arguments)


def dump_stacks(ranks: Mapping[str, ActorHandle], folder: Path, timeout_s: float = 10.0) -> Path:
    """Write what every thread of these actors is doing into a new file in `folder`; ranks that do not answer say so."""
    asked = {name: actor.stacks.remote() for name, actor in ranks.items()}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    parts = []
    for name, ref in asked.items():
        try:
            text = ray.get(ref) if ref in ready else f"no answer within {timeout_s:g} s"
        except RayActorError as error:
            text = f"dead: {cause_of_death(error)}"
        parts.append(f"===== {name} =====\n{text}\n")
    path = folder / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
