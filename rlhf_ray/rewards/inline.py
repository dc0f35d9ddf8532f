"""Functions of notebooks, scripts and closures: they have no import path, and travel as cloudpickled code.

cloudpickle stores what other processes can import by name and the rest by value. Unpickling runs code: only what this
process pickled itself, or a run that it started, is ever given to `from_code`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from rlhf_ray.errors import ConfigError


def to_code(function: Callable[..., Any]) -> bytes:
    """The function as bytes, with what it closes over. Raises ConfigError naming what cannot be sent."""
    try:
        return cloudpickle.dumps(function)
    except Exception as error:  # whatever the __reduce__ of something it closes over raises
        raise ConfigError(
            f"`{label(function)}` cannot be sent to the processes that will call it: {error}. It closes over something "
            "that cannot be pickled (a lock, an open file, a connection): create that inside the function, or move the "
            "function to a module and name it by its import path."
        ) from error


def from_code(code: bytes) -> Callable[..., Any]:
    """The function that `to_code` stored."""
    return cloudpickle.loads(code)


def import_path(thing: Any) -> str | None:
    """`package.module:Qualified.name` where another process can import the function or class, else None."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not module or not name or module == "__main__" or module not in sys.modules:
        return None
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is thing else None


def label(thing: Any) -> str:
    """How to call a function in messages, whether or not it can be imported."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def is_plain(value: Any) -> bool:
    """Whether YAML gives the value back as it is: numbers, text, None, and lists and text-keyed mappings of them."""
    if type(value) is list:
        return all(is_plain(item) for item in value)
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) is float:
        return value - value == 0  # neither infinite nor NaN
    return value is None or type(value) in (bool, int, str)


def all_plain(arguments: Mapping[str, Any]) -> bool:
    return all(is_plain(value) for value in arguments.values())
