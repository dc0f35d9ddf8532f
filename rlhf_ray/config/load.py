"""YAML files and dotted overrides -> one validated configuration, or an error that names the key.

    load_config(PPOConfig, ["configs/base.yaml", "mine.yaml"], ["learner.learning_rate=1e-5"])

Files are merged left to right, mapping by mapping (lists are replaced); a file may pull in others with a top-level
`include: [...]`, relative to itself and merged before it, and into one of its sections by an `include` at the top of
that section. Overrides come last; their values are read as YAML. Types are
strict: text is never silently taken for a number.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rlhf_ray.config.base import Section
from rlhf_ray.config.problems import describe_problems
from rlhf_ray.config.rewards import FunctionRewardSection, ReducerSection
from rlhf_ray.config.tree import is_text
from rlhf_ray.errors import ConfigError

Config = TypeVar("Config", bound=Section)

COMMAND_LINE = "the command line"


def load_config(cls: type[Config], paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """The configuration of type `cls` that the files and overrides describe.

    Raises:
        ConfigError: a file is missing or no YAML, an override is malformed, or keys or values are wrong. Every problem
            is listed, each with its dotted key, the value, what was expected and the file that it stands in.
    """
    layers = _Layers()
    for path in paths:
        layers.add_file(Path(path))
    for override in overrides:
        layers.add_override(cls, override)
    return layers.validate(cls)


def merge_config(cls: type[Config], layers: Iterable[tuple[str, Mapping[str, Any]]]) -> Config:
    """The configuration that nested mappings describe, merged left to right as files are.

    layers: (name of the mapping's origin for errors, mapping). Raises ConfigError as `load_config` does.
    """
    merged = _Layers()
    for origin, content in layers:
        merged.add_mapping(origin, content)
    return merged.validate(cls)


def to_yaml(config: Section) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one.

    Raises:
        ConfigError: a function in it has no import path, so that no file can say what it is.
    """
    if carried := code_carriers(config):
        raise ConfigError(
            "\n".join(
                f"{name} is defined in a script or notebook ({section.function}): a file cannot name it. Move it "
                "to a module that can be imported, or keep running it from Python"
                for name, section in carried.items()
            )
        )
    return _dump(config)


def record_yaml(config: Section) -> str:
    """As `to_yaml`, for a run's record: what a file cannot name is pointed out in a comment."""
    notes = [
        f"# {name} was defined in a script or notebook ({section.function}): this file alone cannot run it.\n"
        for name, section in code_carriers(config).items()
    ]
    return "".join(notes) + _dump(config)


def code_carriers(value: Any, name: str = "") -> dict[str, FunctionRewardSection | ReducerSection]:
    """Dotted name -> section, for the sections below `value` that carry a function which has no import path."""
    if isinstance(value, FunctionRewardSection | ReducerSection) and value.code is not None:
        return {name: value}
    below = iter(value) if isinstance(value, Section) else value.items() if isinstance(value, Mapping) else ()
    found: dict[str, FunctionRewardSection | ReducerSection] = {}
    for key, child in below:
        found |= code_carriers(child, f"{name}.{key}" if name else key)
    return found


def mapping_yaml(content: Mapping[str, Any]) -> str:
    """Nested keys as YAML that `load_config` reads back as they are."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _dump(config: Section) -> str:
    return mapping_yaml(config.model_dump(mode="json"))


class _Layers:
    """The merged data so far, and where each dotted key was last set."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self._origins: dict[tuple[str, ...], str] = {}

    def origin(self, keys: tuple[str, ...]) -> str | None:
        """The file (or the command line) that set the key, or the nearest section above it."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self._origins:
                return self._origins[keys[:length]]
        return None

    def validate(self, cls: type[Config]) -> Config:
        try:
            return cls.model_validate(self.data, strict=True)
        except ValidationError as error:
            raise ConfigError(describe_problems(cls, self.data, error, self.origin)) from None

    def add_mapping(self, origin: str, content: Mapping[str, Any]) -> None:
        self._origins.setdefault((), origin)
        self._merge(self.data, content, (), origin)

    def add_file(self, path: Path, parents: tuple[Path, ...] = (), section: tuple[str, ...] = ()) -> None:
        """Merge what the file includes, then the file; all of it below `section`."""
        resolved = path.resolve()
        if resolved in parents:
            raise ConfigError(f"{path}: includes itself ({' -> '.join(p.name for p in (*parents, resolved))})")
        content = _read_yaml(path)
        for into, include in _take_includes(content, path):
            self.add_file(path.parent / include, (*parents, resolved), (*section, *into))
        self._origins.setdefault((), str(path))
        for key in reversed(section):
            content = {key: content}
        self._merge(self.data, content, (), str(path))

    def add_override(self, cls: type[Section], override: str) -> None:
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys):
            raise ConfigError(f"{override!r} on the command line: overrides are written section.key=value")
        value = _read_value(dotted, text, plain=is_text(cls, keys, self.data))
        nested = value
        for key in reversed(keys[1:]):
            nested = {key: nested}
        self._merge(self.data, {keys[0]: nested}, (), COMMAND_LINE, replace_at=len(keys))

    def _merge(
        self, into: dict[str, Any], new: Mapping[str, Any], keys: tuple[str, ...], origin: str, replace_at: int = 0
    ) -> None:
        """Merge `new` into `into`; at depth `replace_at` (an override's own key) the value replaces what was there."""
        for key, value in new.items():
            here = (*keys, key)
            old = into.get(key)
            if isinstance(value, Mapping) and len(here) != replace_at:
                if old is not None and not isinstance(old, dict):
                    raise ConfigError(
                        f"{'.'.join(here)}: is the value {old!r} in {self.origin(here)}, so it has no keys below it, "
                        f"but {origin} sets {'.'.join((*here, next(iter(value), '')))}"
                    )
                if old is None:
                    old = into[key] = {}
                    self._origins[here] = origin
                self._merge(old, value, here, origin, replace_at)
            else:
                into[key] = value
                for known in [known for known in self._origins if known[: len(here)] == here]:
                    del self._origins[known]
                self._origins[here] = origin


def _take_includes(content: dict[str, Any], path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """(section, file) of every `include` at the top of a file or of one of its sections; they are taken out."""
    sections = [((key,), value) for key, value in content.items() if isinstance(value, dict)]
    for section, holder in [((), content), *sections]:
        includes = holder.pop("include", [])
        for include in [includes] if isinstance(includes, str) else includes or []:
            if not isinstance(include, str):
                key = ".".join((*section, "include"))
                raise ConfigError(f"{key}: got {include!r} in {path}, expected a list of file names")
            yield section, include


class _Loader(yaml.SafeLoader):
    """YAML without its traps: `1e-5` is a number, `no` is text, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be something else to `_Loader` or to an ordinary YAML reader."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first_characters in (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    ("float", r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$", list("-+0123456789.")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first_characters)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def _read_value(dotted: str, text: str, plain: bool) -> Any:
    """An override's value: YAML, but as it stands where the field holds plain text (`run.name=2026`)."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        if plain:
            return text
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"{dotted}: cannot read {text!r} on the command line as YAML ({reason})") from None
    return text if plain and not isinstance(value, str | None) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML file ({error})") from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections with keys at the top level, found {type(content).__name__}")
    return content
