"""Merge methods, optimizers and the other plug-ins as topics, each with its options. No torch."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import TypeAdapter

from evomerge.common.plugins import Registry, options
from evomerge.config.draft import in_one_line
from evomerge.explain.docstrings import Docstring, read
from evomerge.explain.topic import Topic
from evomerge.explain.types import said
from evomerge.methods import Method, Parameter

_ROOMS = {
    "methods": "evomerge.methods.core.registry",
    "optimizers": "evomerge.search.optimizers.base",
    "objectives": "evomerge.judging.objectives",
    "paths": "evomerge.search.spaces.paths.base",
    "engines": "evomerge.fitness.engines",
    "trackers": "evomerge.trackers.base",
}


class _Registries(Mapping[str, Registry[Any]]):
    """Kind → its registry, whose room is imported when it is asked for: some are slow to import."""

    def __getitem__(self, kind: str) -> Registry[Any]:
        return typing.cast(Registry[Any], importlib.import_module(_ROOMS[kind]).REGISTRY)

    def __iter__(self) -> Iterator[str]:
        return iter(_ROOMS)

    def __len__(self) -> int:
        return len(_ROOMS)


REGISTRIES: Mapping[str, Registry[Any]] = _Registries()
KEYS = {
    "methods": "space.weights.method",
    "optimizers": "optimizer",
    "objectives": "fitness.objective",
    "paths": "space.path",
    "engines": "fitness.engine",
    "trackers": "trackers",
}
"""The key of the campaign file that names a plug-in of each kind."""


def plugin_topics(kind: str) -> dict[str, Topic]:
    """Explain the plug-ins of a kind, a key of `REGISTRIES`; options come after their plug-in."""
    found: dict[str, Topic] = {}
    for name, plug in REGISTRIES[kind].all().items():
        topic = _method(name, plug) if isinstance(plug, Method) else _plug(kind, name, plug)
        for one in (topic, *topic.options):
            found[one.name] = one
    return found


def summaries(kind: str) -> dict[str, str]:
    """Say what each plug-in of a kind is, in one line; unlike `plugin_topics` at no cost."""
    found = REGISTRIES[kind].all()
    told = {name: read(getattr(plug, "function", plug)) for name, plug in found.items()}
    return {name: docstring.text.partition("\n")[0] for name, docstring in told.items()}


def _method(name: str, method: Method) -> Topic:
    told = read(method.function)
    searched = dict(_gene(name, p) for p in method.parameters.values() if p.type is float)
    in_options = []
    for p in method.parameters.values():
        value = _gene(name, p)[1] if p.type is float else p.default
        in_options.append(
            Topic(
                name=f"{name}.{p.name}",
                kind="option",
                text=told.arguments.get(p.name) or _about(name, p).get("about", ""),
                type=_values(p),
                default=in_one_line(p.default),
                example=_weights(name, {p.name: value}),
                own=in_one_line({p.name: value}),
                source=method.reference,
                see=(name,),
            )
        )
    return Topic(
        name=name,
        kind=REGISTRIES["methods"].kind,
        text=told.text,
        type=_count(method),
        example=_weights(name, searched),
        own=in_one_line({"method": name}),
        source=method.reference,
        options=tuple(in_options),
    )


def _weights(method: str, genes: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = {"method": method, "granularity": "model"}
    return {"space": {"weights": {**section, "genes": genes} if genes else section}}


def _gene(method: str, parameter: Parameter) -> tuple[str, list[float]]:
    """Bounds to search a parameter in, within its range: those of `parameters.yaml`, if any."""
    assert parameter.low is not None
    assert parameter.high is not None
    low, high = max(parameter.low, 0.0), min(parameter.high, 1.5)
    return parameter.name, _about(method, parameter).get("gene", [low, high])


def _values(parameter: Parameter) -> str:
    values = " or ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.low is not None:
        values = f"number, {parameter.low:g} to {parameter.high:g}"
    return (values or "`true` or `false`") + ", for each expert" * parameter.per_expert


def _count(method: Method) -> str:
    """Say how many experts a method merges, and which data of them it needs."""
    low, high = method.experts
    data = f"; needs data of each: {', '.join(method.calibrated)} (evomerge calibrate)"
    rest = data if method.calibrated else ""
    if high is None:
        return ("any number of experts" if low < 2 else f"{low} experts or more") + rest
    return (f"{low} expert{'s' * (low > 1)}" if low == high else f"{low} to {high} experts") + rest


@cache
def _parameters() -> Mapping[str, dict[str, Any]]:
    text = (files("evomerge.explain") / "parameters.yaml").read_text(encoding="utf-8")
    return typing.cast(Mapping[str, dict[str, Any]], yaml.safe_load(text))


def _about(method: str, parameter: Parameter) -> dict[str, Any]:
    """The words on a method's parameter: its own, or those all methods share."""
    known = _parameters()
    return known.get(f"{method}.{parameter.name}") or known.get(parameter.name, {})


def _plug(kind: str, name: str, plug: Any) -> Topic:
    function = getattr(plug, "function", plug)
    told = read(function)
    arguments = dict(_arguments(function)) | told.arguments
    in_options = tuple(
        Topic(
            name=f"{name}.{option}",
            kind="option",
            text=_sentence(arguments.get(option, "")),
            type=said(parameter.annotation),
            default=_default(parameter),
            example=_nested(kind, name, example := _example(told, option, parameter)),
            own=in_one_line({option: example.get(option)}),
            see=(name,),
        )
        for option, parameter in options(function).items()
    )
    return Topic(
        name=name,
        kind=REGISTRIES[kind].kind,
        text=told.text,
        example=_nested(kind, name, told.example),
        own=in_one_line({"kind": name}),
        options=in_options,
    )


def _arguments(function: Any) -> Iterator[tuple[str, str]]:
    """What the constructor, or the sampler of Optuna's behind it, says of its arguments."""
    if isinstance(function, type):
        if sampler := getattr(function, "sampler", None):
            yield from dict.fromkeys(
                options(function), f"As in Optuna's {sampler.__name__}."
            ).items()
            yield from ((n, _without_roles(t)) for n, t in read(sampler).arguments.items())
        yield from read(inspect.getattr_static(function, "__init__")).arguments.items()


def _without_roles(text: str) -> str:
    """An argument's description without Sphinx's mark-up: roles, and what follows a directive."""
    plain = re.sub(r":[\w:]+:`~?(?:[^`<]*<)?([\w.]*?)(\w+)(?:\(\))?>?`", r"`\2`", text)
    return plain.partition(" .. ")[0].replace("``", "`")


def _sentence(text: str) -> str:
    """An argument's description, which begins small, as a sentence."""
    word = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if word.isalpha() and word.isascii() else text


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "required"
    return in_one_line(parameter.default)


def _example(told: Docstring, option: str, parameter: inspect.Parameter) -> dict[str, Any]:
    """The plug-in's example with the option: its default, or else a number that it takes."""
    if option in told.example:
        return told.example
    value = parameter.default
    if value is None:
        value = _number(parameter.annotation)
    return told.example if value is None else {**told.example, option: value}


def _number(annotation: Any) -> Any:
    for value in (20, 0.5, True):
        try:
            return TypeAdapter(annotation).validate_python(value, strict=True)
        except ValueError:
            continue
    return None


def _nested(kind: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Make a part of a campaign file that names a plug-in, with the given options."""
    chosen: Any = {"kind": name, **{k: v for k, v in given.items() if k != "kind"}}
    if kind in ("objectives", "trackers") and len(chosen) == 1:
        chosen = name
    if kind == "trackers":
        chosen = [chosen]
    for key in reversed(KEYS[kind].split(".")):
        chosen = {key: chosen}
    return typing.cast(dict[str, Any], chosen)
