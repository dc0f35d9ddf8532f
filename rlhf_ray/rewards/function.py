"""Reward functions: find `package.module:function` or `:Class.method` and match its parameters to dataset columns.

A reward function is called as f(prompt, response, ...). Its further parameters are filled by name: first from the
component's `arguments`, then from the columns of the sample table (the dataset's own columns, `prompt_tokens`,
`response_tokens`, `finish_reason`, ...); what is left must have a default. `**kwargs` receives every column. A method
is called on one instance per process, made with the component's `constructor` arguments. With `batch_size` prompt,
response and columns are lists and so is the answer, and `timeout_s` is for the whole batch. An `async def` is awaited,
several calls at a time.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.errors import ConfigError
from rlhf_ray.importing import nearest
from rlhf_ray.rewards.resolve import (
    FunctionSpec,
    RewardFunction,
    find_function,
    make_instance,
    names_of,
    stand_in,
)


@dataclass(frozen=True)
class BoundFunction:
    """A reward function, ready to be called, and where its parameters beyond prompt and response come from."""

    spec: FunctionSpec
    function: RewardFunction
    columns: tuple[str, ...]  # columns of the sample table, passed by name
    is_async: bool = False

    @property
    def calls_at_once(self) -> int:
        return self.spec.concurrency if self.is_async else 1


def bind_function(spec: FunctionSpec, columns: Iterable[str]) -> BoundFunction:
    """Find the function, make the instance of a method, and decide what fills each parameter.

    Raises ConfigError when something cannot be found, made or filled.
    """
    return _bound(spec, find_function(spec, make_instance), columns)


def check_function(spec: FunctionSpec, columns: Iterable[str]) -> None:
    """See that the function is there and its parameters can be filled, without making the instance of a method.

    Raises ConfigError as `bind_function` does, but for what the constructor itself would raise.
    """
    _bound(spec, find_function(spec, stand_in), columns)


def _bound(spec: FunctionSpec, function: RewardFunction, columns: Iterable[str]) -> BoundFunction:
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    if spec.concurrency > 1 and not is_async:
        raise ConfigError(
            f"{spec.where}: concurrency is {spec.concurrency}, but the function is not async and runs one call at a "
            "time. Make it an `async def`, or raise the component's `replicas` instead."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return BoundFunction(spec, function, (), is_async)
    return BoundFunction(spec, function, _fill_parameters(spec, signature, columns), is_async)


def _fill_parameters(spec: FunctionSpec, signature: inspect.Signature, columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that the function takes by name."""
    where, arguments = spec.where, spec.arguments
    parameters = list(signature.parameters.values())
    available = [name for name in columns if name not in ("prompt", "response")]
    extras = _parameters_after_response(parameters)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    _refuse_unknown_arguments(where, arguments, extras, takes_any)
    missing = [
        name for name, p in extras.items() if name not in arguments and name not in available and p.default is p.empty
    ]
    if missing:
        raise ConfigError(
            f"{where} needs {names_of(missing)}, which is neither a column of the samples ({names_of(available)}) "
            f"nor among the component's `arguments` ({names_of(arguments)}). Add the column to the dataset, "
            "set the argument, or give the parameter a default."
        )
    wanted = tuple(name for name in available if (takes_any or name in extras) and name not in arguments)
    try:
        signature.bind("", "", **dict.fromkeys(wanted), **arguments)
    except TypeError as error:
        raise ConfigError(
            f"{where} cannot be called as f(prompt, response, ...): {error}. "
            f"Its signature is {signature}; the first two parameters must take prompt and response."
        ) from None
    return wanted


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
            f"{where} has no parameter {names_of(unknown)} after prompt and response, but `arguments` sets it."
            f"{nearest(unknown[0], extras)}"
        )
