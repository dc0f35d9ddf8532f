"""Functions by import path: `package.module:function`, from installed packages or the working directory."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from rlhf_ray.errors import ConfigError


def import_function(path: str, what: str) -> Callable[..., Any]:
    """The callable at `package.module:function` (or `:Class.method`).

    Raises ConfigError; `what` says in it what the path should have named.
    """
    found = walk(path, what)[-1]
    if not callable(found):
        raise ConfigError(f"{what} `{path}` is a {type(found).__name__}, not a function.")
    return found


def walk(path: str, what: str) -> list[Any]:
    """The module and every attribute on the way to what `package.module:attribute` names, which comes last."""
    module_name, _, attribute = path.partition(":")
    where = f"{what} `{path}`"
    if not module_name or not attribute:
        raise ConfigError(f"{where}: write it as `package.module:function`, for example `my_package.my_module:name`.")
    found: list[Any] = [_import(where, module_name)]
    for part in attribute.split("."):
        if not hasattr(found[-1], part):
            raise ConfigError(f"{where}: `{module_name}` has no `{part}`.{nearest(part, dir(found[-1]))}")
        found.append(getattr(found[-1], part))
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for error messages; empty where nothing is near."""
    match = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{match[0]}`?" if match else ""


def _import(where: str, name: str) -> ModuleType:
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
