"""Evaluating saved models: their answers, and what rewards, judges and benchmarks say of them, with intervals.

rlhf-ray eval runs/ppo-1 --prompts held_out.jsonl --rewards configs/ppo.yaml --against runs/sft-1

report = evaluate("runs/ppo-1", against="runs/sft-1", prompts="held_out.jsonl", reward=Sentiment())
print(report.to_markdown())
"""

from os import PathLike
from typing import Any

from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.evaluation.report import Report
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build_evaluation import build_evaluation
from rlhf_ray.trainers.evaluation_run import EvaluationRun


def evaluate(
    model: Any,
    *,
    prompts: Any = None,
    against: str | PathLike[str] | None = None,
    reference: str | PathLike[str] | None = None,
    reward: Any = None,
    toxicity: Any = None,
    perplexity: Any = None,
    judge: Any = None,
    questions: Any = None,
    benchmarks: Any = None,
    generation: Any = None,
    greedy: bool | None = None,
    run: Any = None,
    console: Console | None = None,
) -> Report:
    """Measure a saved model, alone or against another one. Only what is given is measured.

    Args:
        model: hub name, folder or run of the model, the section `model`, or a whole `EvalConfig`, which the other
            arguments change.
        prompts: path of prompts, prompts or rows in memory, or the section `data`.
        against: a second model, measured alike; win rates are of `model` over it.
        reference: the model from which the KL is measured: what the policy was trained from.
        reward: as for `PPOTrainer`: a composer, a reward model, a function, sections, or a list of these.
        toxicity: hub name or folder of a classifier, or the section `toxicity`.
        perplexity: path or rows of texts, conversations, or prompts with completions; or the section `perplexity`.
        judge: the section `judge` or a dict of its keys (base_url, model, ...).
        questions: path of an MT-Bench or AlpacaEval question file, or the section `questions`.
        benchmarks: names of lm-evaluation-harness tasks, or the section `benchmarks`.
        generation: the section `generation`, or a dict of its keys.
        greedy: take the likeliest token always.
        run: the section `run`, a dict of its keys, or the run's name.

    Raises:
        ConfigError, DataError: an argument, key, value or file is wrong; found before any model is loaded.
    """
    config = build_evaluation(
        model,
        reward,
        run=run,
        prompts=prompts,
        against=against,
        reference=reference,
        toxicity=toxicity,
        perplexity=perplexity,
        judge=judge,
        questions=questions,
        benchmarks=benchmarks,
        generation=generation,
        greedy=greedy,
    )
    return run_evaluation(config, console)


def run_evaluation(config: EvalConfig, console: Console | None = None) -> Report:
    """Measure what `config` asks for; the report lies in the run folder, too, as JSON and Markdown.

    Raises:
        ConfigError, DataError: models, data, rewards, rubrics or tasks are wrong; found before any model is loaded.
    """
    return EvaluationRun(config, console or Console()).run()
