"""The Python form of an evaluation: arguments to the same validated configuration that YAML gives."""

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.load import merge_config
from rlhf_ray.data.memory import DEMONSTRATIONS, PROMPTS
from rlhf_ray.rewards.terms import as_term
from rlhf_ray.trainers.arguments import DATA_FOLDER, rows_path
from rlhf_ray.trainers.build import carry_code

#: Argument -> the section it becomes, and the key of that section that a value which is no section stands for.
SHORT_FORMS = {
    "model": ("model", "name"),
    "run": ("run", "name"),
    "prompts": ("data", "path"),
    "perplexity": ("perplexity", "path"),
    "toxicity": ("toxicity", "model"),
    "questions": ("questions", "path"),
    "benchmarks": ("benchmarks", "tasks"),
}
#: Sections whose rows may be in memory.
ROWS = {"data": PROMPTS, "perplexity": DEMONSTRATIONS}


def build_evaluation(model: Any, reward: Any = None, **arguments: Any) -> EvalConfig:
    """The configuration that the arguments of `evaluate` describe; those that are None are left out.

    Raises:
        ConfigError: as for a YAML file; the problem's place is the argument that it came in.
    """
    whole = isinstance(model, EvalConfig)
    given: dict[str, Any] = {name: getattr(model, name) for name in ("rewards", "reducer")} if whole else {}
    layers: list[tuple[str, Mapping[str, Any]]] = [("evaluate(...)", {})]
    if whole:
        layers.append(("the configuration", model.model_dump(exclude={"rewards", "reducer"} if reward else set())))
    else:
        arguments = {"model": model} | arguments
    if reward is not None:
        term = as_term(reward)
        given = {"rewards": term.sections(), "reducer": term.reducer_section()}
        layers.append(("evaluate(reward=...)", _plain(given)))
    for name, value in arguments.items():
        if value is not None:
            section, key = SHORT_FORMS.get(name, (name, None))
            layers.append((f"evaluate({name}=...)", {section: _plain(_long_form(value, key))}))
    config = merge_config(EvalConfig, [(origin, _with_rows_stored(keys, layers)) for origin, keys in layers])
    carry_code(given, config)
    return config


def _long_form(value: Any, key: str | None) -> Any:
    """A section as it is; any other value as the section's main key."""
    return value if key is None or isinstance(value, Section | Mapping) else {key: value}


def _plain(value: Any) -> Any:
    """Sections and paths, at any depth, as what YAML could hold."""
    if isinstance(value, Section):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return fspath(value) if isinstance(value, PathLike) else value


def _with_rows_stored(keys: Mapping[str, Any], layers: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The same keys, where rows in memory became files below the runs' root."""
    roots = [content["run"]["root"] for _, content in layers if "root" in (content.get("run") or {})]
    folder = Path(roots[-1] if roots else RunSection().root) / DATA_FOLDER
    stored = dict(keys)
    for section, kind in ROWS.items():
        rows = (stored.get(section) or {}).get("path")
        if rows is not None:
            stored[section] = {**stored[section], "path": rows_path(rows, folder, kind)}
    return stored
