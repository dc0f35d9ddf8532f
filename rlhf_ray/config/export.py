"""JSON schemas of the configuration files, for editors (`# yaml-language-server: $schema=...`) and other tools."""

from collections.abc import Iterator
from typing import Any

from rlhf_ray.config.base import Section

_INCLUDE = {
    "description": "Files merged before this one, relative to it; below a section: into that section.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def json_schema(cls: type[Section]) -> dict[str, Any]:
    """The JSON schema of a file that `load_config(cls, ...)` reads. One file need not be complete: none is required."""
    schema = cls.model_json_schema()
    for part in [schema, *schema.get("$defs", {}).values()]:
        part.pop("required", None)
    for part in [schema, *_sections(schema)]:
        part["properties"]["include"] = _INCLUDE
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _sections(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The definitions of the sections at the top of a file."""
    for field in schema["properties"].values():
        for option in field.get("anyOf", [field]):
            if reference := option.get("$ref"):
                yield schema["$defs"][reference.rpartition("/")[2]]
