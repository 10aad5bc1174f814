"""The tables of `evomerge list`: every plug-in of a kind with its options. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rich.table import Table

from evomerge.common.plugins import Registry, options
from evomerge.fitness import engines
from evomerge.judging import objectives
from evomerge.judging.objectives import Objective
from evomerge.methods import Method, Parameter
from evomerge.methods.core import registry as methods
from evomerge.search.optimizers import base as optimizers
from evomerge.search.optimizers.base import summary
from evomerge.search.spaces.paths import base as paths
from evomerge.trackers import base as trackers

REGISTRIES: dict[str, Registry[Any]] = {
    "methods": methods.REGISTRY,
    "optimizers": optimizers.REGISTRY,
    "objectives": objectives.REGISTRY,
    "paths": paths.REGISTRY,
    "engines": engines.REGISTRY,
    "trackers": trackers.REGISTRY,
}
HEADINGS = {
    "methods": ("merge method", "parameters", "what it does", "source"),
    "optimizers": ("optimizer", "options", "what it does"),
    "objectives": ("objective", "options", "what it does"),
    "paths": ("kind of path", "options", "what it searches"),
    "engines": ("engine", "options", "what it does"),
    "trackers": ("tracker", "options", "where it writes"),
}
CAPTIONS = {
    "optimizers": "screen: 4 beside the options of any but map and Optuna's: of four proposals the "
    "one is evaluated that a surrogate of the results prefers"
}


def plugin_table(kind: str) -> Table:
    """List the plug-ins of a kind, a key of `REGISTRIES`, with their options and defaults."""
    table = Table(*HEADINGS[kind], show_lines=True, caption=CAPTIONS.get(kind))
    for name, plug in REGISTRIES[kind].all().items():
        table.add_row(name, *_cells(kind, plug))
    return table


def _cells(kind: str, plug: Any) -> tuple[str, ...]:
    if isinstance(plug, Method):
        parameters = "\n".join(_parameter(p) for p in plug.parameters.values())
        return parameters, plug.summary, plug.reference
    if isinstance(plug, Objective):
        return _options(plug.function), plug.summary
    if kind == "engines":  # their whole docstring: it says when to use which
        paragraphs = (inspect.getdoc(plug) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return _options(plug), text
    return _options(plug), summary(plug)


def _options(plug: Callable[..., Any]) -> str:
    """A line for each option of a plug-in, with its default."""
    return "\n".join(f"{name} = {_default(p.default)}" for name, p in options(plug).items())


def _parameter(parameter: Parameter) -> str:
    """A merge method's parameter: its default, its range or choices, and its scope."""
    if parameter.low is not None:
        allowed = f" in {parameter.low:g} … {parameter.high:g}"
    else:
        allowed = f" of {', '.join(parameter.choices)}" if parameter.choices else ""
    scope = ", per expert" if parameter.per_expert else ""
    return f"{parameter.name} = {_default(parameter.default)}{allowed}{scope}"


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "(required)"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
