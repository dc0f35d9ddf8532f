"""Sections made in Python: the same validation as for YAML, and errors that name the call that was wrong."""

from typing import Any, TypeVar

from pydantic import ValidationError

from rlhf_ray.config.base import Section
from rlhf_ray.config.problems import describe_problems
from rlhf_ray.errors import ConfigError

AnySection = TypeVar("AnySection", bound=Section)


def build_section(cls: type[AnySection], where: str, **fields: Any) -> AnySection:
    """A section from keyword arguments. Raises ConfigError: `where` is what the person wrote, e.g. `LLMJudge`."""
    try:
        return cls.model_validate(fields, strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe_problems(cls, fields, error, lambda keys: None)}") from None


def change_section(section: AnySection, where: str, **fields: Any) -> AnySection:
    """A copy with some fields changed, validated; code that it carries stays with it. Raises ConfigError."""
    copy = section.model_copy()
    for name, value in fields.items():
        try:
            setattr(copy, name, value)
        except ValidationError as error:
            problem = describe_problems(type(section), {name: value}, error, lambda keys: None)
            raise ConfigError(f"{where}: {problem}") from None
    return copy
