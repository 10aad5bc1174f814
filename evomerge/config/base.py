"""Base classes of the campaign file's sections: strict ones, and plug-ins with options."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class Strict(BaseModel):
    """A frozen section of the campaign file that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )


class PlugConfig(BaseModel):
    """`kind` names a plug-in of a registry; the other keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
    kind: str
    """The plug-in's name, or `module:Name` for one of yours."""

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's keyword arguments, as written in the file."""
        return dict(self.model_extra or {})


class NamedConfig(PlugConfig):
    """A plug-in by its bare name, or with options."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone_is_a_kind(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @model_serializer
    def _shortest_form(self) -> Any:
        """Write the bare name where there are no options."""
        return {"kind": self.kind, **self.options} if self.options else self.kind


Scalar = bool | int | float | str

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
