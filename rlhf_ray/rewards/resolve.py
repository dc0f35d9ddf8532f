"""Finding a reward function: by import path, as a method of an instance, or unpickled from a script or notebook."""

import inspect
import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rlhf_ray.errors import ConfigError
from rlhf_ray.importing import import_function, walk

if TYPE_CHECKING:  # the sandbox's child imports this file, and should start without pydantic
    from rlhf_ray.config.rewards import FunctionRewardSection

RewardFunction = Callable[..., Any]
InstanceOf = Callable[["FunctionSpec", type], object]


@dataclass(frozen=True)
class FunctionSpec:
    """What a process must know to call a reward function; the fields are those of `FunctionRewardSection`."""

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    constructor: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    concurrency: int = 1
    timeout_s: float = 30.0
    code: bytes | None = None  # the cloudpickled callable, where it has no import path

    @classmethod
    def of(cls, section: "FunctionRewardSection") -> Self:
        return cls(
            function=section.function,
            arguments=section.arguments,
            constructor=section.constructor,
            keys=section.keys,
            batch_size=section.batch_size,
            concurrency=section.concurrency,
            timeout_s=section.timeout_s,
            code=section.code,
        )

    @property
    def where(self) -> str:
        return f"reward function `{self.function}`"


def find_function(spec: FunctionSpec, instance_of: InstanceOf) -> RewardFunction:
    """The callable that `spec` names: unpickled, imported, or a method of the instance that `instance_of` gives."""
    if spec.code is not None:
        return _unpickle(spec)
    _refuse_script(spec.function, "reward function")
    *_, owner, _ = walk(spec.function, "reward function")
    name = spec.function.partition(":")[2].rpartition(".")[2]
    if isinstance(owner, type) and _needs_instance(owner, name):
        return getattr(instance_of(spec, owner), name)
    if spec.constructor:
        raise ConfigError(f"{spec.where} is no method that needs an instance, but `constructor` is set. Remove it.")
    return resolve_function(spec.function)


def _needs_instance(owner: type, name: str) -> bool:
    attribute = inspect.getattr_static(owner, name)
    return hasattr(type(attribute), "__get__") and not isinstance(attribute, (staticmethod, classmethod, type))


def make_instance(spec: FunctionSpec, owner: type) -> object:
    _check_constructor(spec, owner)
    try:
        return owner(**spec.constructor)
    except (Exception, SystemExit):
        raise ConfigError(
            f"{spec.where}: making `{owner.__name__}` failed.\n{traceback.format_exc().rstrip()}"
        ) from None


def stand_in(spec: FunctionSpec, owner: type) -> object:
    """An object with the methods of `owner` that its constructor never saw."""
    _check_constructor(spec, owner)
    return object.__new__(owner)


def _check_constructor(spec: FunctionSpec, owner: type) -> None:
    try:
        signature = inspect.signature(owner)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**spec.constructor)
    except TypeError as error:
        raise ConfigError(
            f"{spec.where}: `{owner.__name__}` cannot be made from the component's `constructor` "
            f"({names_of(spec.constructor)}): {error}. Its signature is {signature}."
        ) from None


def _unpickle(spec: FunctionSpec) -> RewardFunction:
    assert spec.code is not None
    try:
        function = pickle.loads(spec.code)
    except Exception:
        raise ConfigError(
            f"{spec.where}: what was defined in the script or notebook cannot be rebuilt in another process. Move it "
            f"to a module, or import what it needs inside it.\n{traceback.format_exc().rstrip()}"
        ) from None
    if not callable(function):
        raise ConfigError(f"{spec.where} is a {type(function).__name__}, not a function.")
    return function


def resolve_function(path: str, what: str = "reward function") -> RewardFunction:
    """The callable behind `package.module:attribute`; the working directory is searched too.

    Raises ConfigError; `what` says in it what the path should have named.
    """
    _refuse_script(path, what)
    return import_function(path, what)


def _refuse_script(path: str, what: str) -> None:
    if path.startswith("__main__:"):
        raise ConfigError(
            f"{what} `{path}`: a function of the running script is unknown to other processes. Put it in a file."
        )


def names_of(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
