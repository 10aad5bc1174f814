"""The keys of the campaign file as topics, by a walk through the schema."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge.config import CampaignConfig
from evomerge.config.draft import in_one_line
from evomerge.explain.docstrings import Docstring, of_fields, read
from evomerge.explain.topic import Topic
from evomerge.explain.types import models_in, said

WHOLE = "campaign"
"""The name of the whole file's topic."""


@dataclass(frozen=True)
class Section:
    """A section of the file: its class, its place, and the field of its parent that holds it."""

    model: type[BaseModel]
    name: str = ""
    parent: Section | None = None
    key: str = ""
    inside: str = ""

    def fields(self) -> Iterator[tuple[str, FieldInfo, Docstring]]:
        """Yield key, field and docstring of each of its keys."""
        told = of_fields(self.model)
        for name, field in self.model.model_fields.items():
            yield field.alias or name, field, told.get(name, Docstring(""))

    def around(self, content: dict[str, Any]) -> dict[str, Any]:
        """Make a part of a campaign file that holds this section with `content`."""
        if self.parent is None:
            return content
        filled = {
            key: told.example[key]
            for key, field, told in self.fields()
            if field.is_required() and key not in content and key in told.example
        }
        inner: Any = {**filled, **content}
        outer = next(told for key, _, told in self.parent.fields() if key == self.key).example
        if self.inside == "list":
            inner = [inner]
        elif self.inside == "dict":
            inner = {next(iter(outer[self.key])): inner}
        return self.parent.around({**outer, self.key: inner})


@cache
def sections() -> tuple[Section, ...]:
    """Every section, breadth first; one of a class that stands in several places in its first."""
    found, waiting = [], deque([Section(CampaignConfig)])
    seen: set[type[BaseModel]] = {CampaignConfig}
    while waiting:
        section = waiting.popleft()
        found.append(section)
        for key, field, _ in section.fields():
            for model, inside in models_in(field.annotation):
                if model not in seen:
                    seen.add(model)
                    name = f"{section.name}.{key}".lstrip(".")
                    waiting.append(Section(model, name, section, key, inside))
    return tuple(found)


def key_topics() -> dict[str, Topic]:
    """Explain every key; one that two kinds of a section share has both texts."""
    found: dict[str, Topic] = {}
    for section in sections():
        for key, field, told in section.fields():
            topic = _topic(section, key, field, told)
            same = found.get(topic.name)
            found[topic.name] = topic if same is None else _both(same, topic)
    # what the sections say of themselves, and their keys, go to the key that holds them
    prose: dict[str, list[str]] = {}
    for section in sections():
        prose.setdefault(section.name, []).append(read(section.model).text)
    whole = Topic(WHOLE, "key", "")
    for name, texts in prose.items():
        holder = found.get(name, whole)
        prefix = f"{name}." if name else ""
        inner = [t for n, t in found.items() if n == prefix + t.last]
        parts = [holder.text, *(text for text in texts if text not in holder.text)]
        text = "\n\n".join(parts).strip()
        found[name or WHOLE] = replace(holder, text=text, options=tuple(inner))
    return found


def _topic(section: Section, key: str, field: FieldInfo, told: Docstring) -> Topic:
    example = section.around(told.example) if told.example else None
    return Topic(
        name=f"{section.name}.{key}".lstrip("."),
        kind="key",
        text=told.text,
        type=said(field.annotation, field.metadata),
        default=_default(field),
        example=example,
        own=in_one_line({key: told.example.get(key)}) if told.example else "",
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, BaseModel) else in_one_line(value)


def _both(first: Topic, second: Topic) -> Topic:
    """Join what is said of one key by two kinds of a section."""
    text = first.text if second.text in first.text else f"{first.text}\n\nOr: {second.text}"
    kinds = first.type if second.type in first.type else f"{first.type} or {second.type}"
    return replace(first, text=text, type=kinds)
