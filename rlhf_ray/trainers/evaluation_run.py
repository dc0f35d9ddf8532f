"""One evaluation, phase by phase.

One model after the other has the machine: it answers all prompts and questions (vLLM), and its answers are scored. Then
come log-probs by frozen models (KL, perplexity), benchmarks, and the judge. `EvaluationRun.run` is this list.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_ray.actors.calls import call_all
from rlhf_ray.actors.generator import generator_environment
from rlhf_ray.actors.placement import ActorNeed
from rlhf_ray.actors.runtime import connect, disconnect
from rlhf_ray.config.common import ModelSection
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.evaluation.estimates import WinRate
from rlhf_ray.evaluation.harness import Harness
from rlhf_ray.evaluation.judging import Judge, requests_of
from rlhf_ray.evaluation.logprobs import kl, perplexity
from rlhf_ray.evaluation.questions import QuestionFile, judge_questions
from rlhf_ray.evaluation.report import Comparison, Report, Shown, label_models
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.schema import SAMPLES
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.answers import Answers, answer_prompts, answer_questions
from rlhf_ray.trainers.evaluation_inputs import EvaluationInputs
from rlhf_ray.trainers.frozen_logprobs import FrozenModel, frozen_logprobs
from rlhf_ray.trainers.inference import InferenceActors, engine_dtype
from rlhf_ray.trainers.rollout_actors import RolloutActors
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.session import ActorSession


class EvaluationRun:
    """One evaluation, from its checks to its report."""

    def __init__(self, config: EvalConfig, console: Console) -> None:
        self.inputs, self.console = EvaluationInputs(config), console
        self.config = self.inputs.config  # in which runs are replaced by their policies
        self.report = Report(label_models(self.config.models))
        self.answers: dict[str, Answers] = {}  # by label
        self.replies: dict[str, list[list[str]]] = {}  # label -> each question -> the answers to its turns
        self.normalizer = RewardNormalizer(self.config.rewards)

    def run(self) -> Report:
        """All phases; each does nothing where it was not asked for."""
        config = self.config
        self.inputs.check()
        self.questions = QuestionFile.read(config.questions) if config.questions else None
        with Judge(config.judge) if config.judge else nullcontext() as judge:
            if judge is not None:
                judge.check()
            self.folder = RunFolder.create(config.run, "eval")
            with self.folder.running(config, "eval", self.console.warn):
                self._phases(judge)
        return self.report

    def _phases(self, judge: Judge | None) -> None:
        config = self.config
        self.console.stage("Evaluation", " and ".join(self.report.models))
        cluster = connect(config.resources, config.tracking.verbose)  # one Ray for all phases
        try:
            self._answer()
            self._look_at_logprobs()
            self._examine()
        finally:
            disconnect(cluster)
        self._compare_rewards()
        if judge is not None:
            self._judge(judge)
        self._finish()

    # -- what the models say -----------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Have one model after the other answer the prompts and the questions."""
        for label, name in self.report.models.items():
            model = self.inputs.model(name)
            if self.config.data is not None:
                prompts, columns = self.inputs.prompts(model)
                with self._actors(label, model, columns) as actors:
                    self._answer_prompts(label, prompts, actors)
                    self._answer_questions(label, model, actors)
            elif self.questions is not None:
                with self._actors(label, model, SAMPLES.names) as actors:
                    self._answer_questions(label, model, actors)

    def _answer_prompts(self, label: str, prompts: pa.Table, actors: RolloutActors) -> None:
        greedy, first = self.config.greedy, not self.answers
        with self.console.progress(f"{label}: answering and scoring", prompts.num_rows) as advance:
            answers = answer_prompts(
                actors, prompts, actors.config, self.normalizer, greedy=greedy, first=first, progress=advance
            )
        self.answers[label] = answers
        append_failures(self.folder.quarantine, answers.failures, 0, "evaluation")
        self.report.add(label, answers.measures(self.config.toxicity))
        self.folder.evaluations.mkdir(exist_ok=True)
        pq.write_table(answers.to_table(), self.folder.evaluations / f"{_file_name(label)}.parquet")

    def _answer_questions(self, label: str, model: ModelSection, actors: RolloutActors) -> None:
        if self.questions is None or self.config.questions is None:
            return
        config, questions = self.inputs.questions_config(model, self.config.questions), self.questions.questions
        total, greedy = sum(len(question.turns) for question in questions), self.config.greedy
        with self.console.progress(f"{label}: answering questions", total) as advance:
            self.replies[label] = answer_questions(actors, questions, config, greedy=greedy, progress=advance)

    @contextmanager
    def _actors(self, label: str, model: ModelSection, columns: list[str]) -> Iterator[RolloutActors]:
        config = self.inputs.sampling_config(model)
        scorers = self.inputs.scorers if self.config.data is not None else {}
        with self._session(label) as session:
            with self.console.progress(f"{label}: starting the actors") as advance:
                actors = InferenceActors(session, config, columns, scorers, advance)
            yield actors

    def _session(self, purpose: str) -> ActorSession:
        config, name = self.inputs.sampling_config(self.config.model), _file_name(purpose)
        return ActorSession(config, f"{self.folder.name}-{name}", self.folder.logs / name)

    # -- what frozen models and benchmarks say -----------------------------------------------------------------------

    def _look_at_logprobs(self) -> None:
        """KL from the reference on the responses, and perplexity of the texts."""
        frozen = self._frozen_models()
        if not frozen:
            return
        total = sum(table.num_rows for one in frozen for table, _ in one.tables.values())
        with self._session("logprobs") as session, self.console.progress("log-probs", total) as advance:
            found = frozen_logprobs(frozen, session, self.inputs.sampling_config(self.config.model), advance)
        for label in self.report.models:
            if ("reference", label) in found:
                self.report.add(label, kl(found["policy", label], found["reference", label]))
            if ("texts", label) in found:
                self.report.add(label, perplexity(found["texts", label]))

    def _frozen_models(self) -> list[FrozenModel]:
        """Each model once, with all the responses that it is to look at."""
        config, frozen = self.config, dict[str, FrozenModel]()

        def look(name: str, key: Hashable, table: pa.Table, temperature: float) -> None:
            one = frozen.setdefault(name, FrozenModel(self.inputs.model(name)))
            one.tables[key] = (table, temperature)

        for label, name in self.report.models.items():
            if config.reference is not None:
                samples, temperature = self.answers[label].samples, config.generation.temperature
                look(name, ("policy", label), samples, temperature)
                look(config.reference, ("reference", label), samples, temperature)
            if config.perplexity is not None:
                look(name, ("texts", label), self.inputs.texts(self.inputs.model(name)), 1.0)
        return list(frozen.values())

    def _examine(self) -> None:
        """Have one model after the other pass the benchmarks."""
        section, generation = self.config.benchmarks, self.config.generation
        if section is None:
            return
        for label, name in self.report.models.items():
            with self._session(f"{label}-benchmarks") as session:
                placement = session.reserve([ActorNeed("benchmarks", 0, gpus=generation.tensor_parallel_size)])
                environment = generator_environment(generation, session.starter.threads, self.config.tracking.verbose)
                model = self.inputs.model(name)
                dtype = engine_dtype(self.inputs.sampling_config(model), on_gpu=placement.gpus > 0)
                arguments = (model, generation, dtype, self.config.run.seed)
                actor = session.start("benchmarks", 0, Harness, *arguments, environment=environment)
                with self.console.progress(f"{label}: {', '.join(section.tasks)}"):
                    (measures,) = call_all(
                        [actor], "benchmarks", "answering", "examine", section, deadline_s=section.deadline_s
                    )
            self.report.add(label, measures)

    # -- who is better -----------------------------------------------------------------------------------------------

    def _compare_rewards(self) -> None:
        """The composed rewards of the two models' answers to the same prompts."""
        if len(self.answers) == 2 and self.config.rewards:
            first, second = self._on_the_same_prompts()
            assert first.total is not None
            assert second.total is not None
            gain = first.total - second.total
            self.report.comparisons.append(Comparison("reward", *self._labels(), WinRate.of(gain)))

    def _judge(self, judge: Judge) -> None:
        """The judge's word on the two models' answers, and on the answers to the questions."""
        if len(self.answers) == 2:
            first, second = self._on_the_same_prompts()
            with self.console.progress("judging the answers"):
                verdicts = judge.compare(requests_of(first.samples), first.responses, second.responses)
            result = WinRate.of(verdicts.gain)
            self.report.comparisons.append(Comparison("judge", *self._labels(), result, verdicts.swayed))
        if self.questions is not None:
            for label, replies in self.replies.items():
                with self.console.progress(f"judging {label}'s answers to the questions"):
                    measures, against = judge_questions(judge, self.questions, replies)
                self.report.add(label, measures)
                if against is not None:
                    result = WinRate.of(against.gain)
                    self.report.comparisons.append(
                        Comparison("questions", label, "the file's answers", result, against.swayed)
                    )

    def _labels(self) -> tuple[str, str]:
        """Of the model and the one against it."""
        first, second = self.report.models
        return first, second

    def _on_the_same_prompts(self) -> tuple[Answers, Answers]:
        """Both models' answers, without prompts that were too long for one of them."""
        first, second = self.answers.values()
        _, left, right = np.intersect1d(first.prompt_ids, second.prompt_ids, return_indices=True)
        return first.take(left), second.take(right)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.report.samples += self._samples()
        self.report.facts |= self._facts()
        self.report.write(self.folder.path)
        self.report.show(self.console)

    def _facts(self) -> dict[str, str]:
        config, facts = self.config, dict[str, str]()
        if self.answers:
            how = "greedy" if config.greedy else f"temperature {config.generation.temperature:g}"
            count = len(next(iter(self.answers.values())).responses)
            facts["prompts"] = f"{count:,}, one response each, {how}, seed {config.run.seed}"
        if config.reference is not None:
            facts["reference"] = config.reference
        return facts | {"report": str(self.folder.path)}

    def _samples(self) -> list[Shown]:
        """A few prompts, spread over the set, with every model's response."""
        if not self.answers:
            return []
        both = (
            dict(zip(self.answers, self._on_the_same_prompts(), strict=True)) if len(self.answers) > 1 else self.answers
        )
        prompts = requests_of(next(iter(both.values())).samples)
        rows = np.linspace(0, len(prompts) - 1, min(self.config.show_samples, len(prompts))).astype(int)
        return [
            {"prompt": prompts[row], "responses": {label: one.shown(row) for label, one in both.items()}}
            for row in dict.fromkeys(rows.tolist())
        ]


def _file_name(label: str) -> str:
    """A label as part of a file's and an actor's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label)
