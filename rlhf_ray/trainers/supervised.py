"""The loop that the supervised stages share: ordered rows in, optimiser steps, evaluation, checkpoints, an export.

for step in range(total):
    rows = draw(...)              # a function of (seed, epoch)
    metrics = learner.step(rows)
    track, evaluate, checkpoint
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from rlhf_ray import faults
from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.config.base import Section
from rlhf_ray.data.holdout import with_held_out
from rlhf_ray.data.order import cursor, draw, moved
from rlhf_ray.data.report import Loaded
from rlhf_ray.hub import check_model, load_tokenizer
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build_supervised import build_supervised
from rlhf_ray.trainers.callbacks import Callback, Callbacks, StopRequests
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.session import Session, learner_needs, put
from rlhf_ray.trainers.stage_result import StageResult


class SupervisedTrainer(StopRequests, ABC):
    """A stage of optimiser steps over a fixed table; subclasses say which data, which objective, what to show."""

    stage: ClassVar[str]  # also the name of the configuration's own section
    title: ClassVar[str]
    config_class: ClassVar[type[Section]]
    config: Any
    folder: RunFolder  # this and the next one: of the run in progress
    total_iterations: int

    def __init__(
        self,
        model: Any = None,
        *,
        data: Any = None,
        lora: Any = None,
        training: Any = None,
        run: Any = None,
        resume: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        console: Console | None = None,
    ) -> None:
        """Either a configuration alone, or parts of one in Python; both give the same validated `config`.

        Args:
            model: hub name or folder of a causal language model; or a configuration, changed by the other arguments.
            data: path or hub name, a list of rows, a `datasets.Dataset`, an Arrow table, or the section `data` (also
                as a dict), in whose `path` and `eval_path` any of these may stand.
            lora: a `LoraConfig` (ours or peft's), or a dict of its fields.
            training: a dict of options: fields of the stage's own section, options of a `TrainingConfig` that the
                stage has, and dotted keys of the configuration; or a `TrainingConfig`.
            run: the section `run`, a dict of its keys, or the run's name.
            resume: folder of an earlier run that is to go on from its last checkpoint.

        Raises:
            ConfigError: an argument, key or value is wrong; the message names it.
        """
        self.config = build_supervised(
            type(self).__name__,
            self.config_class,
            self.stage,
            model,
            data=data,
            lora=lora,
            training=training,
            run=run,
            resume=resume,
        )
        self.resume, self.callbacks, self.console = resume, Callbacks(callbacks), console or Console()

    # -- what a stage is ---------------------------------------------------------------------------------------------

    @abstractmethod
    def load(self, tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> Loaded:
        """The training table, or the one at `path`."""

    @abstractmethod
    def rows_per_step(self) -> int: ...

    @abstractmethod
    def start_objective(self, learner: LearnerRanks, table: Any, eval_table: Any) -> None: ...

    @abstractmethod
    def show(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics worth a place on the console, by short name."""

    def epochs(self) -> int:
        return int(getattr(self.config, self.stage).epochs)

    def eval_every(self) -> int:
        return int(getattr(self.config, self.stage).eval_every)

    def export(self, learner: LearnerRanks, folder: Path) -> None:
        learner.export(folder)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> StageResult:
        """Run the stage to its end (or to Ctrl-C), and export the model."""
        config, console = self.config, self.console
        check_model(config.model.name, config.model.revision)
        tokenizer = load_tokenizer(
            config.model.tokenizer or config.model.name, config.model.revision, config.model.trust_remote_code
        )
        loaded, held_out = with_held_out(partial(self.load, tokenizer), config.data, config.run.seed)
        rows, per_step = loaded.table.num_rows, min(self.rows_per_step(), loaded.table.num_rows)
        total = self.epochs() * (rows // per_step)
        with Session(config, self.stage, self.resume, console) as session:
            console.stage(self.title, config.model.name)
            console.facts(session.describe() | self._facts(loaded, held_out, per_step, total))
            self.folder, self.total_iterations, self.stop_reason = session.folder, total, None
            session.reserve(learner_needs(config))
            with console.progress("starting the learner"):
                learner = session.start_learner()
                learner.join(total)
                self.start_objective(learner, put(loaded.shared()), put(held_out.shared()) if held_out else None)
            try:
                return self._loop(session, learner, rows, per_step, total, evaluate=held_out is not None)
            except BaseException as error:
                self.callbacks.on_exception(error)
                raise

    def _facts(self, loaded: Loaded, held_out: Loaded | None, per_step: int, total: int) -> dict[str, object]:
        facts: dict[str, object] = {"data": loaded.report.describe()}
        if held_out:
            facts["held out"] = held_out.report.describe()
        return facts | {"steps": f"{total} of {per_step} rows ({self.epochs()} epochs)"}

    def _loop(
        self, session: Session, learner: LearnerRanks, rows: int, per_step: int, total: int, evaluate: bool
    ) -> StageResult:
        config, console = self.config, self.console
        first, result = 0, StageResult(session.folder.policy, session.folder.path, total)
        if session.resumed:
            learner.load(session.resumed.learner)
            first, state = session.resumed.step, session.resumed.state
            result.before, result.after = state["before"], state.get("after")
            self.callbacks.load_state_dict(state.get("callbacks", {}))
            if "data" in state and (why := moved(state["data"], cursor(rows, per_step, first))):
                console.warn(why)
        elif evaluate:
            result.before = self._evaluate(session, learner, 0)
        self.callbacks.on_train_start(self)
        with console.progress(self.stage, total) as advance:
            advance(first)
            for step in range(first, total):
                self.callbacks.on_iteration_start(step + 1)
                faults.reach("draw")
                started = time.monotonic()
                metrics = learner.call(
                    f"step {step}", "step", draw(rows, per_step, step, config.run.seed, config.data.shuffle)
                )
                metrics["seconds/total"] = time.monotonic() - started
                faults.reach("trained")
                result.history.append(metrics)
                session.trackers.log(step + 1, metrics)
                faults.reach("tracked")
                self.callbacks.on_iteration_end(step + 1, metrics)
                stopping = session.stop.requested or self.stop_reason is not None
                last = step + 1 == total or stopping
                shown = self.show(metrics)
                advance(1, "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))
                if last:
                    console.step(step + 1, total, shown)
                metric = None
                if evaluate and (last or (self.eval_every() and (step + 1) % self.eval_every() == 0)):
                    result.after = self._evaluate(session, learner, step + 1)
                    metric = -result.after["eval/loss"]
                if last or (config.checkpoint.every and (step + 1) % config.checkpoint.every == 0):
                    state = {"before": result.before, "after": result.after, "callbacks": self.callbacks.state_dict()}
                    state["data"] = cursor(rows, per_step, step + 1)
                    session.write_checkpoint(step + 1, state, learner, metric)
                for path in session.checkpoints.poll():
                    self.callbacks.on_checkpoint(path)
                if stopping:
                    result.steps, result.interrupted = step + 1, session.stop.requested
                    result.stopped_because = self.stop_reason
                    break
        with console.progress("exporting the model"):
            self.export(learner, session.folder.policy)
        for path in session.checkpoints.finish():
            self.callbacks.on_checkpoint(path)
        self.callbacks.on_train_end(result)
        return result

    def _evaluate(self, session: Session, learner: LearnerRanks, step: int) -> dict[str, float]:
        metrics: dict[str, float] = learner.call("evaluating", "evaluate")
        session.trackers.log(step, metrics)
        self.console.step(step, None, {name.replace("eval/", "held-out "): value for name, value in metrics.items()})
        return metrics
