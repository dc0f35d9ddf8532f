"""`rlhf-ray eval`: measure saved models, from a configuration or from a few options."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from rlhf_ray.errors import ConfigError


@click.command("eval")
@click.argument("arguments", nargs=-1, metavar="[MODEL] [KEY=VALUE]...")
@click.option("-c", "--config", "files", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help="YAML.")
@click.option("--prompts", metavar="FILE", help="Prompts to answer (data.path).")
@click.option("--against", metavar="MODEL", help="Another model: win rates are of MODEL over it.")
@click.option("--reference", metavar="MODEL", help="What the policy was trained from: measures the KL.")
@click.option("--rewards", type=click.Path(path_type=Path), metavar="FILE", help="YAML with `rewards`, e.g. of a run.")
@click.option("--toxicity", metavar="MODEL", help="Classifier of toxic texts.")
@click.option("--perplexity", metavar="FILE", help="Texts, conversations, or prompts with completions.")
@click.option(
    "--questions", metavar="FILE", help="MT-Bench or AlpacaEval questions for the judge (judge.base_url=...)."
)
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="lm-evaluation-harness task; may be repeated.")
@click.option("--greedy", is_flag=True, default=None, help="Always the likeliest token.")
def evaluate(
    arguments: tuple[str, ...],
    files: tuple[Path, ...],
    rewards: Path | None,
    tasks: tuple[str, ...],
    **options: str | bool | None,
) -> None:
    """Measure a model: rewards, KL, perplexity, toxicity, lengths, diversity, win rates, benchmarks.

    \b
    rlhf-ray eval runs/ppo-1 --prompts held_out.jsonl --rewards configs/ppo.yaml
    rlhf-ray eval runs/ppo-1 --against runs/sft-1 --reference runs/sft-1 --prompts held_out.jsonl --rewards ppo.yaml
    rlhf-ray eval gpt2 --perplexity wikitext.jsonl --task truthfulqa_mc2
    rlhf-ray eval runs/dpo-1 --questions question.jsonl judge.base_url=http://host:8000/v1 judge.model=judge
    rlhf-ray eval --config configs/eval.yaml

    MODEL is a hub name, a folder, or the folder of a run. The report is printed, and lies in the run folder as
    report.json and report.md with every response beside it. All keys: rlhf-ray config schema eval.
    """
    from rlhf_ray.config.evaluation import EvalConfig, RewardsFile
    from rlhf_ray.config.load import load_config

    overrides = _overrides([argument for argument in arguments if "=" not in argument], options)
    if tasks:
        overrides.append(f"benchmarks.tasks={json.dumps(tasks)}")
    if rewards is not None:
        overrides += [
            f"{key}={json.dumps(value)}" for key, value in load_config(RewardsFile, [rewards]).model_dump().items()
        ]
    overrides += [argument for argument in arguments if "=" in argument]
    if not files and not overrides:
        raise ConfigError("nothing to evaluate: give a MODEL, or --config FILE (see rlhf-ray eval --help)")
    config = load_config(EvalConfig, files, overrides)
    from rlhf_ray.trainers.evaluate import run_evaluation

    run_evaluation(config)


#: Option -> the key that it sets.
KEYS = {
    "prompts": "data.path",
    "against": "against",
    "reference": "reference",
    "toxicity": "toxicity.model",
    "perplexity": "perplexity.path",
    "questions": "questions.path",
    "greedy": "greedy",
}


def _overrides(models: Sequence[str], options: Mapping[str, str | bool | None]) -> list[str]:
    """The model and the options as dotted keys; what is not given is left to the files."""
    if len(models) > 1:
        raise ConfigError(f"one MODEL at a time, got {', '.join(models)}; compare two with --against")
    given = {KEYS[name]: value for name, value in options.items() if value is not None}
    return [f"model.name={name}" for name in models] + [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()
    ]
