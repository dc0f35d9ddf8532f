"""`rlhf-ray eval`: measure saved models, from a configuration or from a few options."""

import json
from collections.abc import Sequence
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
    arguments: tuple[str, ...], files: tuple[Path, ...], rewards: Path | None, **options: str | bool | tuple[str, ...]
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
    from rlhf_ray.config.evaluation import EvalConfig
    from rlhf_ray.config.load import load_config

    models = [argument for argument in arguments if "=" not in argument]
    overrides = [*_overrides(models, rewards, options), *(argument for argument in arguments if "=" in argument)]
    if not files and not overrides:
        raise ConfigError("nothing to evaluate: give a MODEL, or --config FILE (see rlhf-ray eval --help)")
    config = load_config(EvalConfig, files, overrides)
    from rlhf_ray.trainers.evaluate import run_evaluation

    run_evaluation(config)


def _overrides(
    models: Sequence[str], rewards: Path | None, options: dict[str, str | bool | tuple[str, ...]]
) -> list[str]:
    """The options as dotted keys; what is not given is left to the files."""
    if len(models) > 1:
        raise ConfigError(f"one MODEL at a time, got {', '.join(models)}; compare two with --against")
    keys = {
        "model.name": models[0] if models else None,
        "data.path": options["prompts"],
        "against": options["against"],
        "reference": options["reference"],
        "toxicity.model": options["toxicity"],
        "perplexity.path": options["perplexity"],
        "questions.path": options["questions"],
        "benchmarks.tasks": list(options["tasks"]) if isinstance(options["tasks"], tuple) and options["tasks"] else None,
        "greedy": options["greedy"],
    }  # fmt: skip
    given = {key: value for key, value in keys.items() if value is not None}
    if rewards is not None:
        given |= _rewards_of(rewards)
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]


def _rewards_of(path: Path) -> dict[str, object]:
    """The sections `rewards` and `reducer` of a file, whatever else is in it."""
    from rlhf_ray.config.evaluation import RewardsFile
    from rlhf_ray.config.load import load_config

    return dict(load_config(RewardsFile, [path]).model_dump())
