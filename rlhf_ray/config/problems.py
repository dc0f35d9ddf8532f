"""What is wrong with a configuration, in the words of the person who wrote it: dotted key, value, expectation, file."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from rlhf_ray.config.base import Section
from rlhf_ray.config.tree import all_keys, child, known_keys, mapping_value, sections, tagged

Keys = tuple[str, ...]

EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def describe_problems(
    cls: type[Section], data: Mapping[str, Any], error: ValidationError, origin: Callable[[Keys], str | None]
) -> str:
    """One line per wrong key. `origin` names the file that set a key; alternatives of a union share a line."""

    def place(keys: Keys) -> str:
        source = origin(keys)
        return "" if source is None else f" on {source}" if source.startswith("the ") else f" in {source}"

    lines: dict[Keys, str] = {}
    wrong: dict[Keys, list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        detail: dict[str, Any] = dict(item)
        keys, parent = _locate(cls, detail["loc"])
        if detail["type"] == "extra_forbidden":
            lines[keys] = _unknown(cls, keys, parent) + place(keys)
        elif detail["type"] == "missing":
            lines[keys] = f"{'.'.join(keys)}: missing{_meaning(parent, keys[-1])}{place(keys)}"
        elif detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
            lines[(*keys, "type")] = _tag(cls, keys, detail, place((*keys, "type")))
        else:
            wrong.setdefault(keys, []).append(detail)
            lines[keys] = _wrong(keys, wrong[keys], place(keys))
    texts = list(lines.values())
    if len(texts) == 1:
        return texts[0]
    return "\n  ".join([f"{len(texts)} problems in the configuration:", *texts])


def _locate(cls: type[Section], location: tuple[int | str, ...]) -> tuple[Keys, Any]:
    """pydantic's location -> the keys as written, and the type of the section that holds the last of them.

    A discriminated union adds its tag to the location and other unions a label; neither is a key.
    """
    keys: list[str] = []
    annotation: Any = cls
    parent: Any = cls
    for part in location:
        if len(sections(annotation)) > 1 and keys:
            annotation = tagged(annotation, part)
        elif sections(annotation) or mapping_value(annotation) is not None:
            keys.append(str(part))
            annotation, parent = child(annotation, str(part)), annotation
        else:
            break
    return tuple(keys), parent


def _unknown(cls: type[Section], keys: Keys, parent: Any) -> str:
    key = keys[-1]
    siblings = known_keys(parent)
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.65)
    elsewhere = [".".join(path) for path in all_keys(cls) if path[-1] == key]
    if near:
        hint = f"did you mean {near[0]}?"
    elif elsewhere:
        hint = f"did you mean {' or '.join(elsewhere[:3])}?"
    else:
        hint = f"known here: {', '.join(siblings)}"
    return f"{'.'.join(keys)}: unknown key ({hint})"


def _meaning(parent: Any, key: str) -> str:
    section = next((section for section in sections(parent) if key in section.model_fields), None)
    meaning = section.model_fields[key].description if section else None
    return f" ({meaning.rstrip('.')})" if meaning else ""


def _tag(cls: type[Section], keys: Keys, detail: dict[str, Any], place: str) -> str:
    annotation: Any = cls
    for key in keys:
        annotation = child(annotation, key)
    types = " or ".join(section.model_fields["type"].default for section in sections(annotation))
    if detail["type"] == "union_tag_not_found":
        return f"{'.'.join(keys)}.type: missing ({types}){place}"
    return f"{'.'.join(keys)}.type: {_shown(detail['ctx']['tag'])}{place} should be {types}"


def _wrong(keys: Keys, details: list[dict[str, Any]], place: str) -> str:
    if details[0]["type"] == "value_error":  # raised by a section's own validator, in words that need no frame
        return f"{'.'.join(keys)}: {details[0]['ctx']['error']}{place}".removeprefix(": ")
    expected = [EXPECTED.get(d["type"], d["msg"]).format(**d.get("ctx", {})) for d in details]
    return f"{'.'.join(keys)}: {_shown(details[0]['input'])}{place} should be {' or '.join(dict.fromkeys(expected))}"


def _shown(value: Any) -> str:
    """A value as it would stand in YAML, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
