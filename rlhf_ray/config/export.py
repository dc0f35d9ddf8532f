"""JSON schemas of the configuration files, for editors (`# yaml-language-server: $schema=...`) and other tools."""

from typing import Any

from rlhf_ray.config.base import Section


def json_schema(cls: type[Section]) -> dict[str, Any]:
    """The JSON schema of a file that `load_config(cls, ...)` reads. One file need not be complete: none is required."""
    schema = cls.model_json_schema()
    schema.pop("required", None)
    schema["properties"]["include"] = {
        "description": "Files merged before this one, relative to it.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
