"""What `evomerge list` shows: the registries, with every parameter. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rich.table import Table

from evomerge.common.plugins import Registry, options
from evomerge.fitness import engines as _engines
from evomerge.judging import objectives as _objectives
from evomerge.methods import Parameter
from evomerge.methods.core import registry as _methods
from evomerge.search.optimizers import base as _optimizers
from evomerge.search.optimizers.base import summary
from evomerge.search.spaces.paths import base as _paths
from evomerge.trackers import base as _trackers

REGISTRIES: dict[str, Registry[Any]] = {
    "methods": _methods.REGISTRY,
    "optimizers": _optimizers.REGISTRY,
    "objectives": _objectives.REGISTRY,
    "paths": _paths.REGISTRY,
    "engines": _engines.REGISTRY,
    "trackers": _trackers.REGISTRY,
}


def methods() -> Table:
    """Merge methods: parameters with defaults and ranges, and where each comes from."""
    table = _table("merge method", "parameters", "what it does", "source")
    for name, method in _methods.methods().items():
        parameters = "\n".join(_describe(p) for p in method.parameters.values())
        table.add_row(name, parameters, method.summary, method.reference)
    return table


def optimizers() -> Table:
    """Optimizers and their options."""
    table = _table("optimizer", "options", "what it does")
    for name, kind in _optimizers.optimizers().items():
        table.add_row(name, _options(kind), summary(kind))
    table.caption = (
        "screen: 4 beside the options of any but map and Optuna's: of four proposals the one is "
        "evaluated that a surrogate of the results prefers"
    )
    return table


def objectives() -> Table:
    """Objectives and their options."""
    table = _table("objective", "options", "what it does")
    for name, objective in _objectives.objectives().items():
        table.add_row(name, _options(objective.function), objective.summary)
    return table


def trackers() -> Table:
    """Trackers and their options."""
    table = _table("tracker", "options", "where it writes")
    for name, kind in _trackers.trackers().items():
        table.add_row(name, _options(kind), summary(kind))
    return table


def paths() -> Table:
    """Kinds of paths and their options."""
    table = _table("kind of path", "options", "what it searches")
    for name, kind in _paths.path_kinds().items():
        table.add_row(name, _options(kind), summary(kind))
    return table


def engines() -> Table:
    """Scoring engines and their options."""
    table = _table("engine", "options", "what it does")
    for name, kind in _engines.engines().items():
        paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        table.add_row(name, _options(kind), text)
    return table


def _table(*columns: str) -> Table:
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column)
    return table


def _options(plug: Callable[..., Any]) -> str:
    """A line for each option of a plug, with its default."""
    return "\n".join(f"{name} = {_shown(p.default)}" for name, p in options(plug).items())


def _describe(parameter: Parameter) -> str:
    if parameter.low is not None:
        allowed = f" in {parameter.low:g} … {parameter.high:g}"
    else:
        allowed = f" of {', '.join(parameter.choices)}" if parameter.choices else ""
    scope = ", per expert" if parameter.per_expert else ""
    return f"{parameter.name} = {_shown(parameter.default)}{allowed}{scope}"


def _shown(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "(required)"
    return (
        "none"
        if default is None
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
