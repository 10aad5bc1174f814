"""Say what is wrong where a campaign file breaks the schema."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from evomerge.common.wrong_values import what_was_expected
from evomerge.config.campaign import CampaignConfig

_FORM = re.compile(
    r"(list|tuple|literal|dict|function-\w+|constrained-\w+|lax|json)([\[:(-].*)?|kind:.*"
    r"|bool|int|float|str|name|run|study|gradient|[A-Z]\w*"
)
"""What pydantic's locations name the forms by that a value may have; no file holds them."""


def explain(problems: Sequence[Mapping[str, Any]], data: Any) -> Iterator[str]:
    """Write pydantic's problems as `key.path: what is wrong, and the way out`, one a value.

    Args:
        problems: pydantic's error entries.
        data: the file's.
    """
    # 1. problems by the value that has several forms, or else by their own place
    found: dict[tuple[str, ...], list[tuple[tuple[str, ...], Mapping[str, Any]]]] = {}
    for problem in problems:
        place, forms = _place(problem["loc"], data)
        found.setdefault(place if forms is None else place[:forms], []).append((place, problem))
    # 2. what lies within a value tells more than that the value has none of the other forms
    for value, group in found.items():
        within = [one for one in group if len(one[0]) > len(value)]
        if within:
            inner: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
            for place, problem in within:
                inner.setdefault(place, []).append(problem)
            yield from (_explain(place, listed) for place, listed in inner.items())
        else:
            yield _explain(value, [problem for _, problem in group])


def _place(location: Sequence[int | str], data: Any) -> tuple[tuple[str, ...], int | None]:
    """The keys of a location that the file holds, and after how many of them a form is named."""
    keys: list[str] = []
    forms: int | None = None
    here = data
    for part in location:
        held = _held(here, part)
        if not held and isinstance(part, str) and _FORM.fullmatch(part):
            forms = len(keys) if forms is None else forms
            continue
        keys.append(str(part))
        here = here[part] if held else None
    return tuple(keys), forms


def _held(data: Any, part: int | str) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _explain(place: Sequence[str], problems: Sequence[Mapping[str, Any]]) -> str:
    return f"{_wrong(place, problems)}; type: evomerge explain {_topic(place)}"


def _wrong(place: Sequence[str], problems: Sequence[Mapping[str, Any]]) -> str:
    where, kinds = ".".join(place) or "campaign", {problem["type"] for problem in problems}
    if "extra_forbidden" in kinds:
        valid = _keys_at(place[:-1])[1]
        near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"
        return f"{where}: unknown key; {hint}"
    if "missing" in kinds:
        return f"{where}: required, but not given"
    return f"{where}: {what_was_expected(problems)}{_instead(place, problems[0].get('input'))}"


def _instead(place: Sequence[str], given: Any) -> str:
    """Show how to write what was meant where a section is written in a shorter form."""
    if place[:2] == ("fitness", "tasks") and len(place) == 3 and isinstance(given, str):
        return f"; write {{task: {given}}}"
    if tuple(place) == ("models", "experts") and given and isinstance(given, str | list):
        paths = [given] if isinstance(given, str) else given
        plain = [(str(path).partition("@")[0].rstrip("/"), path) for path in paths]
        named = ", ".join(f"{name.rpartition('/')[2]}: {path}" for name, path in plain)
        return f"; give each a name: {{{named}}}"
    return ""


def _topic(location: Sequence[str]) -> str:
    """The name under which `evomerge explain` knows the key, or the nearest section above it."""
    return ".".join(_keys_at(location)[0]) or "campaign"


def _keys_at(location: Sequence[str]) -> tuple[list[str], list[str]]:
    """Walk the schema to a place in the file: the keys on the way, and those valid there."""
    models: list[type[BaseModel]] = [CampaignConfig]
    way = []
    for part in location:
        field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        if field is None:
            continue  # a list index, a key of a free mapping, or no key
        way.append(part)
        models = _models_in(field.annotation) or models
    return way, list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Collect the models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
