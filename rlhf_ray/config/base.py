"""The base of every configuration section: strict, bounded, documented."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors; every field carries a bound and a one-line meaning."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, validate_assignment=True, protected_namespaces=(), allow_inf_nan=False
    )

    def to_yaml(self) -> str:
        """This section as YAML, all values resolved; see `config.load.to_yaml`."""
        from rlhf_ray.config.load import to_yaml

        return to_yaml(self)
