"""A saved model's answers: to prompts, scored by reward components, and to questions that come turn by turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import ray

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.evaluation import ToxicitySection
from rlhf_ray.errors import DataError
from rlhf_ray.evaluation.estimates import Estimate, share_of
from rlhf_ray.evaluation.questions import Question, conversation
from rlhf_ray.evaluation.text import Measures, diversity, lengths
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.schema import REWARD_PREFIX
from rlhf_ray.trainers.evaluation import EVALUATION
from rlhf_ray.trainers.inference import load_inputs, sample_texts
from rlhf_ray.trainers.rollout_actors import RolloutActors

TOXICITY = "toxicity"  # name of the classifier among the scorers
GREEDY = {"temperature": 0.0}


@dataclass(frozen=True)
class Answers:
    """One response per prompt, ordered by prompt_id; arrays float64 [prompts], NaN where there is no value."""

    samples: pa.Table  # `schema.SAMPLES` and the dataset's own columns
    truncated: np.ndarray  # bool
    total: np.ndarray | None  # the composed reward; None without rewards
    components: dict[str, np.ndarray]  # raw values of the rewards and their parts, and of the toxicity
    failures: list[RewardFailure]

    @property
    def responses(self) -> list[str]:
        """The texts."""
        return self.samples["response"].to_pylist()

    @property
    def prompt_ids(self) -> np.ndarray:
        """int64 [prompts]."""
        return self.samples["prompt_id"].to_numpy()

    def measures(self, toxicity: ToxicitySection | None) -> Measures:
        """What can be said of the responses without another look at the models."""
        found: Measures = {} if self.total is None else {"reward": Estimate.mean(self.total)}
        found |= {REWARD_PREFIX + name: Estimate.mean(v) for name, v in self.components.items() if name != TOXICITY}
        if toxicity is not None:
            values = self.components[TOXICITY]
            known = values[~np.isnan(values)]
            found["toxicity/mean"] = Estimate.mean(known)
            found["toxicity/share_above_threshold"] = share_of(known > toxicity.threshold)
        tokens = np.array([len(row) for row in self.samples["response_tokens"]])
        return found | lengths(self.responses, tokens, self.truncated) | diversity(self.responses)

    def take(self, rows: np.ndarray) -> "Answers":
        """Some of the prompts, in the order of `rows`, int [prompts]."""
        total = None if self.total is None else self.total[rows]
        components = {name: values[rows] for name, values in self.components.items()}
        return Answers(self.samples.take(rows), self.truncated[rows], total, components, self.failures)

    def shown(self, row: int) -> tuple[str, float | None]:
        """A response, and its reward where it has one."""
        reward = None if self.total is None or np.isnan(self.total[row]) else float(self.total[row])
        return self.samples["response"][row].as_py(), reward

    def to_table(self) -> pa.Table:
        """The samples with their rewards beside them; a missing one is null."""
        values = {REWARD_PREFIX + name: column for name, column in self.components.items()}
        if self.total is not None:
            values = {"reward": self.total} | values
        table = self.samples
        for name, column in values.items():
            table = table.append_column(name, pa.array(column, pa.float64(), from_pandas=True))
        return table


def answer_prompts(
    actors: RolloutActors,
    prompts: pa.Table,
    config: PPOConfig,
    normalizer: RewardNormalizer,
    *,
    greedy: bool,
    first: bool,
    progress: Callable[..., None],
) -> Answers:
    """Sample and score a response to every prompt.

    `config.rewards` are composed to the total; the actors may have further scorers, which only report. Running
    normalisation is measured on the `first` model's responses, so that another one is held against the same scale.
    """
    rollouts = actors.collector().collect(
        prompts,
        EVALUATION,
        config.run.seed,
        samples_per_prompt=1,
        with_reference=False,
        sampling=GREEDY if greedy else None,
        progress=progress,
    )
    table = pa.concat_tables(ray.get(batch.samples) for batch in rollouts.batches)
    order = np.argsort(table["prompt_id"].to_numpy(), kind="stable")
    total = None
    if config.rewards:
        composed = replace(rollouts, failures=[f for f in rollouts.failures if f.component in config.rewards])
        total = composed.compose(config, normalizer, update=first).total[order]
    _stop_if_told_to(actors, rollouts.failures, config)
    components = {name: values[order] for name, values in rollouts.scores().items()}
    return Answers(table.take(order), rollouts.column("truncated")[order], total, components, rollouts.failures)


def _stop_if_told_to(actors: RolloutActors, failures: Sequence[RewardFailure], config: PPOConfig) -> None:
    """Composing looks after the rewards; a failure of another scorer stops the evaluation here."""
    for failure in failures:
        if failure.component not in config.rewards and actors.rewards[failure.component].on_failure == "fail":
            raise DataError(f"{failure.describe()}\nSet {failure.component}.on_failure to `skip_sample` to go on.")


def answer_questions(
    actors: RolloutActors,
    questions: Sequence[Question],
    config: PPOConfig,
    *,
    greedy: bool,
    progress: Callable[..., None],
) -> list[list[str]]:
    """The model's answer to each turn of each question; a turn is asked when those before it have been answered."""
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [i for i, question in enumerate(questions) if turn < len(question.turns)]
        prompts = load_inputs(config, [_next_prompt(questions[i], answers[i]) for i in asked])
        sampling = GREEDY if greedy else {}
        for i, text in zip(asked, sample_texts(actors, prompts, config.run.seed, sampling, progress), strict=True):
            answers[i].append(text)
    return answers


def _next_prompt(question: Question, answers: Sequence[str]) -> str | list[dict[str, str]]:
    """The question's next turn with all that was said before it; a first turn is text, which needs no chat template."""
    return conversation(question, answers) if answers else question.turns[0]
