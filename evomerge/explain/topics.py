"""Every topic, and the search for one by what somebody types."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files

import yaml

from evomerge.common.errors import InputError
from evomerge.explain.keys import key_topics
from evomerge.explain.plugins import KEYS, REGISTRIES, plugin_topics
from evomerge.explain.topic import Topic


def glossary() -> dict[str, Topic]:
    """The terms of reports and docs, by name."""
    text = (files("evomerge.explain") / "glossary.yaml").read_text(encoding="utf-8")
    return {
        term: Topic(term, "term", about["text"].strip(), see=tuple(about.get("see", ())))
        for term, about in yaml.safe_load(text).items()
    }


@cache
def topics() -> tuple[Topic, ...]:
    """Everything that can be explained: keys, plug-ins with their options, terms."""
    keys = key_topics()
    found = [t for kind in REGISTRIES for t in plugin_topics(kind).values()]
    for kind, key in KEYS.items():
        keys[key] = replace(keys[key], see=tuple(REGISTRIES[kind].all()))
    return (*keys.values(), *found, *glossary().values())


def find_topics(asked: str) -> list[Topic]:
    """Find what somebody asks for: by name, by the end of a key, by the kind of a plug-in.

    Raises:
        InputError: nothing is called that; names what is near.
    """
    name = asked.strip().replace("[]", "")
    for found in (
        _named(name),
        _ending(name),
        [t for kind, key in KEYS.items() if _is_kind(name, kind) for t in _named(key)],
        [t for t in topics() if t.kind == "option" and t.last == name],
        _ending(name.partition(".")[2]),  # a key of a stage, or of the audit's tasks
    ):
        if found:
            return found
    if ":" in name and not name.startswith("optuna:"):
        raise InputError(f"explain {asked}: a plug-in of yours; its own docstring explains it")
    known = sorted({t.name for t in topics()} | {t.last for t in topics() if t.kind == "key"})
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else "`evomerge explain` lists what there is"
    raise InputError(f"explain {asked}: nothing is called that; {hint}")


def _named(name: str) -> list[Topic]:
    return [t for t in topics() if t.name.lower() == name.lower()]


def _ending(name: str) -> list[Topic]:
    """Keys whose name ends so, however deep they lie."""
    if not name:
        return []
    found = [t for t in topics() if t.kind == "key" and f".{t.name}".endswith(f".{name}")]
    return found or _ending(name.partition(".")[2] if "." in name else "")


def _is_kind(name: str, kind: str) -> bool:
    return name.lower() in (kind, kind.removesuffix("s"), REGISTRIES[kind].kind)


def overview() -> Iterator[tuple[str, list[str]]]:
    """Yield the kinds of topics, each with their names, without options and deeper keys."""
    keys = [t.name for t in topics() if t.kind == "key" and t.name.count(".") < 2]
    yield "keys", keys
    for kind in REGISTRIES:
        yield kind, list(REGISTRIES[kind].all())
    yield "terms", list(glossary())
