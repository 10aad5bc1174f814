"""Types in the words of somebody who writes YAML."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge.config import NamedConfig, PathConfig

WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    type(None): "`null`",
    Any: "anything",
    list: "list",
    dict: "section",
}
SIGNS = {"Ge": ("ge", "≥ "), "Gt": ("gt", "> "), "Le": ("le", "≤ "), "Lt": ("lt", "< ")}


def said(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say what values a type takes, with the bounds that hold for them."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return said(parts[0], (*parts[1:], *metadata))
    return ", ".join([_plainly(annotation, origin, parts), *_bounds(metadata)])


def _plainly(annotation: Any, origin: Any, parts: tuple[Any, ...]) -> str:
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(map(said, parts))
        if "number" in kinds:
            kinds.pop("whole number", None)
        return " or ".join(kinds)
    if origin is tuple:
        return f"[{', '.join(map(said, parts))}]"
    if origin is dict:
        return f"{{name: {said(parts[1])}, …}}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return f"[{said(parts[0])}, …]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        by_name = issubclass(annotation, NamedConfig | PathConfig)
        return "a name, or a section" if by_name else "a section"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    """Yield the bounds among a type's marks: ≥ 1, at least 2 entries."""
    for mark in metadata:
        if isinstance(mark, FieldInfo):
            yield from _bounds(mark.metadata)
        elif type(mark).__name__ in SIGNS:
            attribute, sign = SIGNS[type(mark).__name__]
            yield f"{sign}{getattr(mark, attribute)}"


def models_in(annotation: Any, inside: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the sections that a type holds, each with `list`, `dict` or nothing around it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, inside
    origin = typing.get_origin(annotation)
    around = origin.__name__ if origin in (list, dict) else inside
    for part in typing.get_args(annotation):
        yield from models_in(part, around)
