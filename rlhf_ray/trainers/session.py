"""What every stage does around its loop: join Ray, place and start actors, keep the run folder, end cleanly."""

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

import ray
from ray.actor import ActorHandle

from rlhf_ray.actors.calls import find_lost
from rlhf_ray.actors.learner import Learner
from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.actors.memory_watch import MemoryWatch
from rlhf_ray.actors.placement import ActorNeed, Placement, place, place_again
from rlhf_ray.actors.runtime import ActorStarter, Cluster, connect, disconnect
from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.actors.thread import CALL_TIMEOUT
from rlhf_ray.config import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.errors import DiskFull, InfrastructureError, RLHFRayError
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.tracker import BEGINNING, Trackers, make_trackers, restore_tracker_ids, tracker_ids
from rlhf_ray.trainers.checkpoint import Checkpoint, Checkpoints
from rlhf_ray.trainers.disk import DiskGuard
from rlhf_ray.trainers.failure_log import FAILURES_FILE, FailureLog
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.run_lock import RunLock
from rlhf_ray.trainers.run_record import Status, status_of

Config = SFTConfig | RewardModelConfig | DPOConfig | PPOConfig
#: How long a run that ends waits for the checkpoint that is being written.
SETTLE_S = 60.0


class ActorSession:
    """The cluster and the actors of something that runs; a context manager that ends them all."""

    failed = True  # unless `__exit__` finds that it ended well
    placement: Placement | None = None  # once the actors' places are reserved
    error: BaseException | None = None  # by which it ended

    def __init__(self, config: Config, name: str, logs: Path) -> None:
        """`name` comes first in the actors' names; `logs` is the folder of their output."""
        self.config, self.name, self.logs = config, name, logs
        self.failures = FailureLog()
        self.supervision = Supervision(config.resources, self.failures)

    def __enter__(self) -> Self:
        with ExitStack() as ending:
            self._open(ending)
            self._ending = ending.pop_all()
        return self

    def _open(self, ending: ExitStack) -> None:
        self.cluster: Cluster = connect(self.config.resources, self.config.tracking.verbose)
        ending.callback(disconnect, self.cluster)
        threads = self.config.resources.threads or self.cluster.cores_per_node
        self.starter = ActorStarter(self.name, self.logs, threads)
        self.starter.await_predecessor()
        watch = MemoryWatch(self.starter.actors)
        ending.callback(watch.close)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.failed, self.error = error is not None, error
        with self._ending:
            if isinstance(error, Exception) and not isinstance(error, RLHFRayError):
                self._blame_lost_actors(error)

    def _blame_lost_actors(self, error: Exception) -> None:
        """When a rank dies, another may be the first to say so, by an error of its torn collective call."""
        if lost := find_lost(self.starter.actors):
            names = "; ".join(f"{name} was lost: {cause}" for name, cause in lost.items())
            raise InfrastructureError(f"{names} {self.advice()}") from error

    def advice(self) -> str:
        """What a person does about an actor that was lost for good."""
        return f"The logs are in {self.logs}."

    def reserve(self, needs: Sequence[ActorNeed]) -> Placement:
        """Reserve the places of all actors at once; refused here if they do not fit.

        Asked again, it ends all actors and places them on what the loss of a node has left of the cluster.
        """
        resources, before = self.config.resources, self.placement
        if before is None:
            self.placement = place(needs, self.cluster, resources)
            self.supervision.require_places = self.require_places
            self._ending.callback(self._release)
            self._ending.callback(self.starter.end)  # first, and whatever ends the run
        else:
            self.starter.end()
            before.release()
            self.cluster, self.placement = place_again(
                needs, self.cluster, resources, gpus=before.gpus > 0, warn=self.warn
            )
        return self.placement

    def warn(self, text: str) -> None:
        """To the console, where there is one."""
        if self.failures.console is not None:
            self.failures.console.warn(text)

    def _release(self) -> None:
        if self.placement is not None:
            self.placement.release()

    def require_places(self) -> None:
        """Raises PlacementLost where a node took reserved places along and there is no room elsewhere."""
        assert self.placement is not None, "reserve comes first"
        self.placement.require_whole()

    def start(
        self, kind: str, index: int, cls: type, *arguments: Any, environment: dict[str, str] | None = None
    ) -> ActorHandle:
        """Start the actor that has been given place (kind, index). Raises PlacementLost where the place is gone."""
        self.require_places()
        assert self.placement is not None
        place = self.placement.places[kind, index]
        environment = {CALL_TIMEOUT: str(self.config.resources.call_timeout_s)} | (environment or {})
        return self.starter.start(kind, index, place, cls, *arguments, environment=environment)


class Session(ActorSession):
    """A stage's run: its folder, checkpoints and trackers beside the actors."""

    def __init__(self, config: Config, stage: str, resume: str | Path | None, console: Console) -> None:
        self.console = console
        self.stage = stage
        self.folder = RunFolder.open(resume, stage) if resume else RunFolder.create(config.run, stage)
        super().__init__(config, self.folder.name, self.folder.logs)
        self.failures.path, self.failures.console = self.folder.path / FAILURES_FILE, console
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.checkpoint, console.warn)
        self.disk = DiskGuard(self.folder.path, config.guards.min_free_disk_mib, console.warn)
        finished = bool(resume) and status_of(self.folder.path) == "finished"
        self.lock = RunLock(self.folder.path)
        self.lock.acquire(console.warn)
        try:
            self.resumed: Checkpoint | None = self.checkpoints.latest() if resume else None
            #: The step at which the run had finished that now goes further, maybe not for the first time.
            self.extends = (self.resumed.step if self.resumed else None) if finished else self.folder.extends
        except BaseException:
            self.lock.release()
            raise
        if resume and self.resumed is None:
            console.warn(f"{self.folder.path} holds no complete checkpoint: starting from the beginning")
        self.started = time.monotonic()
        self.stop = StopSignal(console)
        self.learner: LearnerRanks | None = None

    def _open(self, ending: ExitStack) -> None:
        ending.callback(self.lock.release)
        config, again = self.config, self.folder.config_file.is_file()
        self.folder.write_start(config, self.stage, self.extends)
        ending.push(self._write_end)
        resume_step = self.resumed.step if self.resumed else (BEGINNING if again else None)
        if self.resumed:
            restore_tracker_ids(self.folder.path, self.resumed.state.get("trackers", {}))
        self.trackers: Trackers = make_trackers(
            config.tracking, self.folder.path, config, resume_step, self.console.warn
        )
        ending.callback(lambda: self.trackers.close(self.failed))
        super()._open(ending)
        self.stop.install()
        ending.callback(self.stop.uninstall)

    def _write_end(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Note how the run ended: by `error` if it did not start, or an actor was to blame; else by `self.error`."""
        error = error or self.error
        if isinstance(error, KeyboardInterrupt) or (self.stop.requested and error is None):
            status: Status = "interrupted"
        else:
            status = "failed" if self.failed else "finished"
        try:
            if isinstance(error, RLHFRayError):
                self.failures.ended(error)
            self.folder.write_end(status, error if status == "failed" else None)
        except (InfrastructureError, OSError) as problem:
            self.console.warn(str(problem))

    def reserve(self, needs: Sequence[ActorNeed]) -> Placement:
        placement = super().reserve(needs)
        self._ending.callback(self.checkpoints.settle, SETTLE_S)  # before the ranks that write it end
        return placement

    def write_checkpoint(
        self, step: int, state: dict[str, Any], learner: LearnerRanks, metric: float | None = None
    ) -> None:
        """`Checkpoints.write`, with the state that is the session's own."""
        with suppress(DiskFull):  # the write finds out itself, which costs the checkpoint and not the run
            self.disk.check("a checkpoint")
        self.trackers.sync()  # a resume from the checkpoint reads the metrics up to it
        state = state | {"trackers": tracker_ids(self.folder.path)}
        with self.console.progress("checkpoint"):
            self.checkpoints.write(step, state, learner, metric)

    def advice(self) -> str:
        return f"{super().advice()} --resume {self.folder.path} goes on from the last checkpoint."

    def end_learner(self) -> None:
        """End all ranks that are there."""
        self.starter.end("learner")

    def start_learner(self) -> LearnerRanks:
        """New ranks, which have yet to join."""
        size = self.config.learner.ranks
        arguments = (size, str(self.folder.quarantine))
        actors = [self.start("learner", rank, Learner, self.config, rank, *arguments) for rank in range(size)]
        self.learner = LearnerRanks(actors, self.config.resources, self.require_places)
        return self.learner

    def describe(self) -> dict[str, object]:
        """Facts about where the run lies and runs, for the console."""
        cluster = self.cluster
        resources = f"{cluster.cpus:g} CPUs, {cluster.gpus} GPUs" + (" (local Ray)" if cluster.local else "")
        facts: dict[str, object] = {"run folder": self.folder.path, "cluster": resources}
        if cluster.dashboard:
            facts["dashboard"] = f"http://{cluster.dashboard}"
        return facts


def learner_needs(config: Config) -> list[ActorNeed]:
    return [ActorNeed("learner", rank, gpus=1) for rank in range(config.learner.ranks)]


class StopSignal:
    """Ctrl-C once: finish the step in hand, save, end. Twice: end now."""

    def __init__(self, console: Console) -> None:
        self.requested, self._console = False, console
        self._previous: Any = None

    def install(self) -> None:
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # not the main thread: a notebook's or a test's own handler stays
            self._previous = None

    def uninstall(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._console.warn("stopping after this step and saving; press Ctrl-C again to stop at once")


def put(value: Any) -> ray.ObjectRef:
    """An object that the driver owns: it lives as long as the run."""
    return ray.put(value)
