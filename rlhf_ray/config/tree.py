"""Walking the configuration's type tree: which keys exist below which, and what type they have."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from rlhf_ray.config.base import Section


def members(annotation: Any) -> list[Any]:
    """The alternatives of a type, without None: `int | None` -> [int]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for option in get_args(annotation) for member in members(option)]
    return [] if annotation is type(None) else [annotation]


def sections(annotation: Any) -> list[type[Section]]:
    """Those alternatives that are configuration sections."""
    return [member for member in members(annotation) if isinstance(member, type) and issubclass(member, Section)]


def tagged(annotation: Any, tag: Any) -> type[Section] | None:
    """The section of a discriminated union whose `type` is `tag`."""
    return next((section for section in sections(annotation) if section.model_fields["type"].default == tag), None)


def mapping_value(annotation: Any) -> Any | None:
    """X for `dict[str, X]`, else None."""
    return next((get_args(member)[1] for member in members(annotation) if get_origin(member) is dict), None)


def known_keys(annotation: Any) -> list[str]:
    """The keys that a section has; none where keys are free (a mapping) or there are none."""
    return [key for section in sections(annotation) for key in section.model_fields]


def is_text(cls: type[Section], keys: tuple[str, ...], data: Mapping[str, Any]) -> bool:
    """Whether the field at `keys` holds nothing but text (or null); `data` tells which variant of a union is meant."""
    annotation: Any = cls
    here: Any = data
    for key in keys:
        here = here.get(key) if isinstance(here, Mapping) else None
        annotation = child(annotation, key)
        if len(sections(annotation)) > 1:
            annotation = tagged(annotation, here.get("type") if isinstance(here, Mapping) else None)
    return members(annotation) == [str]


def child(annotation: Any, key: str) -> Any | None:
    """The type of `key` below a section or mapping; None where there is no such key."""
    value = mapping_value(annotation)
    if value is not None:
        return value
    for section in sections(annotation):
        if key in section.model_fields:
            return section.model_fields[key].annotation
    return None


def all_keys(cls: type[Section], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key path below a section, in order of definition; mappings with free keys are not entered."""
    for key, field in cls.model_fields.items():
        yield (*above, key)
        for section in sections(field.annotation):
            yield from all_keys(section, (*above, key))
