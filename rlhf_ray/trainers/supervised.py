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
from rlhf_ray.data.order import cursor, draw
from rlhf_ray.data.report import Loaded
from rlhf_ray.errors import BadUpdate
from rlhf_ray.files import replaced
from rlhf_ray.hub import check_model, load_tokenizer
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build_supervised import build_supervised
from rlhf_ray.trainers.callbacks import Callback, Callbacks, StopRequests
from rlhf_ray.trainers.guarding import ROLLED_BACK, review_updates, roll_back
from rlhf_ray.trainers.recovery import Loss, Recovery
from rlhf_ray.trainers.restoring import Restorer
from rlhf_ray.trainers.results import read_history
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
        tables = loaded, held_out
        with Session(config, self.stage, self.resume, console) as session:
            console.stage(self.title, config.model.name)
            console.facts(session.describe() | self._facts(loaded, held_out, per_step, total))
            self.folder, self.total_iterations, self.stop_reason = session.folder, total, None
            run = _Run(self, session, rows, per_step, total, [put(t.shared()) if t else None for t in tables])
            recovery = Recovery(session, lambda: run.done)
            try:
                return recovery.run(lambda loss: run.go_on(recovery, loss))
            except BaseException as error:
                self.callbacks.on_exception(error)
                raise

    def _facts(self, loaded: Loaded, held_out: Loaded | None, per_step: int, total: int) -> dict[str, object]:
        facts: dict[str, object] = {"data": loaded.report.describe()}
        if held_out:
            facts["held out"] = held_out.report.describe()
        return facts | {"steps": f"{total} of {per_step} rows ({self.epochs()} epochs)"}


class _Run:
    """One run of a stage: `total` steps of `per_step` rows each, of `rows` rows in all."""

    def __init__(
        self, trainer: SupervisedTrainer, session: Session, rows: int, per_step: int, total: int, tables: list[Any]
    ) -> None:
        """`tables`: references to the training table and to the held-out one, or None."""
        self.t, self.session, self.tables = trainer, session, tables
        self.config, self.console, self.callbacks = trainer.config, trainer.console, trainer.callbacks
        self.rows, self.per_step, self.total = rows, per_step, total
        self.result = StageResult(session.folder.policy, session.folder.path, total)
        self.done, self.announced = 0, False
        self.history: list[dict[str, float]] = []  # metrics of step 1, 2, ..., those that earlier processes ran too
        self.began = 0  # the steps that this process did not run
        self.restorer = Restorer(session, self.callbacks, trainer)

    def go_on(self, recovery: Recovery, loss: Loss | None) -> StageResult:
        """From the last checkpoint, or the beginning, to the end; the learner is started for it."""
        if loss is None or loss.everything:
            self.session.reserve(learner_needs(self.config))
        self._start_learner()
        self._restore()
        recovery.settled()
        if not self.done and not self.result.before and self.evaluates:
            self.result.before = self._evaluate(0)
        if not self.announced:
            self.announced = True
            self.callbacks.on_train_start(self.t)
        self._loop()
        return self._finish()

    def _start_learner(self) -> None:
        """New ranks, as they are at the start of the run, in place of those that there may be."""
        self.session.end_learner()
        with self.console.progress("starting the learner"):
            self.learner = self.session.start_learner()
            self.learner.join(self.total)
            self.t.start_objective(self.learner, *self.tables)

    @property
    def evaluates(self) -> bool:
        return self.tables[1] is not None

    @property
    def stopping(self) -> bool:
        """A callback or Ctrl-C asked for the end."""
        return self.t.stop_reason is not None or self.session.stop.requested

    def _restore(self) -> None:
        """Go to the session's checkpoint, or to the beginning."""
        first, resumed, result = self.restorer.attempt < 0, self.session.resumed, self.result
        if resumed is not None:
            self.learner.load(resumed.learner)
        step, state = self.restorer.restore()
        result.before, result.after = state.get("before", {}), state.get("after", {})
        if first:
            self.restorer.warn_if_moved(state, cursor(self.rows, self.per_step, step))
        self.began = step if first else min(self.began, step)
        self.history = read_history(self.session.folder.metrics_file, step)
        self.done = step

    def _loop(self) -> None:
        if self.done and self.stopping:  # asked for before a loss: the last checkpoint is the end
            return
        with self.console.progress(self.t.stage, self.total) as advance:
            advance(self.done)
            for step in range(self.done, self.total):
                metrics = self._step(step)
                last = step + 1 == self.total or self.stopping
                shown = {} if metrics.keys() >= ROLLED_BACK.keys() else self.t.show(metrics)
                advance(1, "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))
                if last:
                    self.console.step(step + 1, self.total, shown)
                metric = None
                if self.evaluates and (last or _due(step + 1, self.t.eval_every())):
                    self.result.after = self._evaluate(step + 1)
                    metric = -self.result.after["eval/loss"]
                if last or _due(step + 1, self.config.checkpoint.every):
                    self.session.write_checkpoint(step + 1, self._state(), self.learner, metric)
                for path in self.session.checkpoints.poll():
                    self.callbacks.on_checkpoint(path)
                if last:
                    return

    def _step(self, step: int) -> dict[str, float]:
        """Step `step`, counted from 0: train, track."""
        config = self.config
        self.session.failures.iteration = step + 1
        self.callbacks.on_iteration_start(step + 1)
        faults.reach("draw")
        started = time.monotonic()
        rows = draw(self.rows, self.per_step, step, config.run.seed, config.data.shuffle)
        try:
            metrics: dict[str, float] = self.learner.call(f"step {step}", "step", rows, step + 1)
        except BadUpdate as error:
            metrics = roll_back(self.session, error, self._start_learner)
        review_updates(metrics, self.history, config.guards, self.session.failures)
        metrics["seconds/total"] = time.monotonic() - started
        metrics |= self.session.failures.metrics()
        faults.reach("trained")
        self.history.append(metrics)
        self.done = step + 1
        self.session.trackers.log(step + 1, metrics)
        faults.reach("tracked")
        self.callbacks.on_iteration_end(step + 1, metrics)
        return metrics

    def _state(self) -> dict[str, Any]:
        before, after = self.result.before, self.result.after
        data = cursor(self.rows, self.per_step, self.done)
        return self.restorer.state() | {"before": before, "after": after, "data": data}

    def _finish(self) -> StageResult:
        """Export the model."""
        result = self.result
        result.history = self.history[self.began :]
        if self.done < self.total:
            result.steps, result.interrupted = self.done, self.session.stop.requested
            result.stopped_because = self.t.stop_reason
        self.session.disk.check("the model")
        with self.console.progress("exporting the model"), replaced(self.session.folder.policy) as aside:
            self.t.export(self.learner, aside)
        for path in self.session.checkpoints.finish():
            self.callbacks.on_checkpoint(path)
        self.callbacks.on_train_end(result)
        return result

    def _evaluate(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = self.learner.call("evaluating", "evaluate")
        self.session.trackers.log(step, metrics)
        self.console.step(step, None, {name.replace("eval/", "held-out "): value for name, value in metrics.items()})
        return metrics


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
