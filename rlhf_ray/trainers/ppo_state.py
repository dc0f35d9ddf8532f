"""What a PPO run is between two iterations: kept in checkpoints, put back by a resume or a recovery."""

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.algorithms.kl import AdaptiveKL, FixedKL, make_kl_controller
from rlhf_ray.config import PPOConfig
from rlhf_ray.data.order import cursor
from rlhf_ray.errors import BadUpdate, ConfigError
from rlhf_ray.files import replaced
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callbacks, StopRequests
from rlhf_ray.trainers.guarding import roll_back
from rlhf_ray.trainers.ppo_actors import PPOActors
from rlhf_ray.trainers.restoring import Restorer
from rlhf_ray.trainers.results import PPOResult, read_history
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.session import Session


class PPOState(StopRequests):
    """The state of a trainer's run, with the ways to a checkpoint and back."""

    config: PPOConfig
    console: Console
    session: Session
    folder: RunFolder
    callbacks: Callbacks
    kl: FixedKL | AdaptiveKL
    normalizer: RewardNormalizer
    actors: PPOActors | None
    _held_out: Any
    _evaluated_after: int | None
    _restorer: Restorer
    _announced: bool  # to the callbacks
    _whole: int | None  # iterations so far, while no iteration is in progress
    _metric: float | None  # by which a checkpoint of `_whole` is compared with others; None: it was not measured
    _prompts: int  # rows of training data

    def _begin_state(self, prompts: int) -> None:
        """A run over so many prompts begins, or goes on from the session's checkpoint."""
        self._restorer = Restorer(self.session, self.callbacks, self)
        self._prompts, self._metric, self._whole, self._announced = prompts, None, None, False

    def _restore(self, result: PPOResult) -> None:
        """Go to the session's checkpoint, or to the beginning; the learner's ranks are new."""
        first, resumed = self._restorer.attempt < 0, self.session.resumed
        if resumed is not None:
            with self.console.progress("loading the checkpoint"):
                self._running().learner.load(resumed.learner)
        step, state = self._restorer.restore()
        self.kl, self.normalizer = make_kl_controller(self.config.kl), RewardNormalizer(self.config.rewards)
        if resumed is not None:
            self.kl.load_state_dict(state["kl"])
            self.normalizer.load_state_dict(state.get("normalizer", {}))
            if first:
                self._restorer.warn_if_moved(state, self._cursor(step))
                self.console.note(f"resuming after iteration {step}")
        else:
            result.before = None  # callbacks that saw the start's evaluation have been rewound, and see it again
        self._evaluated_after = None
        self._metric = resumed.metric if resumed is not None else None
        result.iterations = self._whole = step
        result.history = read_history(self.folder.metrics_file, step)

    def _roll_back(self, error: BadUpdate) -> dict[str, float]:
        """The learner alone goes back to the last checkpoint, and publishes as a new attempt."""
        metrics = roll_back(self.session, error, self._running().restart_learner)
        self._restorer.count_attempt()
        return metrics

    def _checkpoint(self, iterations: int) -> None:
        """Begin a checkpoint; what it is to follow on disk is there first."""
        self._running().finish_writing()
        state = self._restorer.state() | {
            "kl": self.kl.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "data": self._cursor(iterations),
        }
        self.session.write_checkpoint(iterations, state, self._running().learner, self._metric)

    def _checkpoint_metric(self, result: PPOResult) -> float | None:
        """By what checkpoints are compared: the held-out reward where that is measured regularly, else the samples'."""
        if not self.config.evaluation.every or self._held_out is None:
            return result.history[-1]["reward/mean"]
        if self._evaluated_after != result.iterations or result.after is None:
            return None
        return float(np.nanmean(result.after.reward))

    def _cursor(self, iterations: int) -> dict[str, int]:
        return cursor(self._prompts, self.config.ppo.prompts_per_iteration, iterations)

    def export_policy(self, folder: Path) -> None:
        """Save the policy that the learner of the run holds now as a Hugging Face folder."""
        learner = self._running().learner
        self.session.disk.check("the policy")
        learner.export(folder)

    def _save_policy(self) -> None:
        """The run's own; an earlier one is there until this one is."""
        with replaced(self.folder.policy) as aside:
            self.export_policy(aside)

    def _rescue(self) -> None:
        """A callback raised: save the policy, and between two iterations a checkpoint, so that none of them is lost."""
        self.console.warn("a callback raised: saving the policy before the run ends")
        self._save_policy()
        if self._whole:
            self._checkpoint(self._whole)
        self.session.checkpoints.settle()

    def _running(self) -> PPOActors:
        if self.actors is None:
            raise ConfigError("no run is going on: this works from callbacks only")
        return self.actors
