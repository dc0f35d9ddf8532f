"""Reward functions by import path: find `package.module:function` and match its parameters to dataset columns.

A reward function is called as f(prompt, response, ...). Its further parameters are filled by name: first from the
component's `arguments`, then from the columns of the sample table (the dataset's own columns, `prompt_tokens`,
`response_tokens`, `finish_reason`, ...); what is left must have a default. `**kwargs` receives every column.
"""

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rlhf_ray.errors import ConfigError

RewardFunction = Callable[..., Any]


@dataclass(frozen=True)
class BoundFunction:
    """A reward function and where its parameters beyond prompt and response come from."""

    function: RewardFunction
    columns: tuple[str, ...]  # columns of the sample table, passed by name
    arguments: Mapping[str, Any]  # constants from the configuration


def bind_function(path: str, arguments: Mapping[str, Any], columns: Iterable[str]) -> BoundFunction:
    """Find the function and decide what fills each of its parameters. Raises ConfigError when something cannot."""
    function = resolve_function(path)
    where = f"reward function `{path}`"
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where} is async, and would return a coroutine, not a number. Make it a plain `def`.")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return BoundFunction(function, (), arguments)

    available = [name for name in columns if name not in ("prompt", "response")]
    extras = _parameters_after_response(parameters)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    _refuse_unknown_arguments(where, arguments, extras, takes_any)
    missing = [
        name for name, p in extras.items() if name not in arguments and name not in available and p.default is p.empty
    ]
    if missing:
        raise ConfigError(
            f"{where} needs {_names(missing)}, which is neither a column of the samples ({_names(available)}) "
            f"nor among the component's `arguments` ({_names(arguments)}). Add the column to the dataset, "
            "set the argument, or give the parameter a default."
        )
    wanted = tuple(name for name in available if (takes_any or name in extras) and name not in arguments)
    try:
        inspect.signature(function).bind("", "", **dict.fromkeys(wanted), **arguments)
    except TypeError as error:
        raise ConfigError(
            f"{where} cannot be called as f(prompt, response, ...): {error}. "
            f"Its signature is {inspect.signature(function)}; the first two parameters must take prompt and response."
        ) from None
    return BoundFunction(function, wanted, arguments)


def resolve_function(path: str) -> RewardFunction:
    """The callable behind `package.module:attribute`; the working directory is searched too. Raises ConfigError."""
    module_name, _, attribute = path.partition(":")
    where = f"reward function `{path}`"
    if not module_name or not attribute:
        raise ConfigError(f"{where}: write it as `package.module:function`, for example `my_rewards:brevity`.")
    found: Any = _import(where, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{where}: `{module_name}` has no `{part}`.{_nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where} is a {type(found).__name__}, not a function.")
    return found


def _import(where: str, name: str) -> ModuleType:
    if name == "__main__":
        raise ConfigError(f"{where}: a function of the running script is unknown to other processes. Put it in a file.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not search the working directory by itself
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{where}: there is no module `{error.name}`. Searched the working directory {os.getcwd()} and the "
                "installed packages. Run from the folder that holds it, install it, or correct the path."
            ) from None
        raise ConfigError(f"{where}: importing `{name}` failed.\n{traceback.format_exc().rstrip()}") from None


def _parameters_after_response(parameters: list[inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Parameters that can be filled by name, without the two that take prompt and response."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first_two = [p.name for p in parameters if p.kind in positional][:2]
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in parameters if p.kind in by_name and p.name not in first_two}


def _refuse_unknown_arguments(
    where: str, arguments: Mapping[str, Any], extras: Mapping[str, inspect.Parameter], takes_any: bool
) -> None:
    unknown = [] if takes_any else [name for name in arguments if name not in extras]
    if unknown:
        raise ConfigError(
            f"{where} has no parameter {_names(unknown)} after prompt and response, but `arguments` sets it."
            f"{_nearest(unknown[0], extras)}"
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{match[0]}`?" if match else ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
