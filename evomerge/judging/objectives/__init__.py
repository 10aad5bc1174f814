"""Objectives: task means to one number, one file each.

An objective is a function `(means, weights) → value` over arrays of shape (..., tasks) and
(tasks,), vectorised over the leading axes, so that intervals can be had by resampling. Means are
signed: larger is better for every task. Put it in a file of this folder under `@objective`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.registry import find, import_all

ObjectiveFunction = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

_REGISTRY: dict[str, Objective] = {}


@dataclass(frozen=True)
class Objective:
    """A registered objective."""

    name: str
    function: ObjectiveFunction

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


def objective(function: ObjectiveFunction) -> ObjectiveFunction:
    """Register a function as an objective under its own name."""
    name = function.__name__
    if name in _REGISTRY:
        raise ValueError(f"two objectives are called {name!r}")
    _REGISTRY[name] = Objective(name, function)
    return function


def objectives() -> Mapping[str, Objective]:
    """Every registered objective by name, in alphabetical order."""
    import_all(__name__)
    return dict(sorted(_REGISTRY.items()))


def find_objective(name: str, where: str) -> Objective:
    """The objective called `name`.

    Raises:
        InputError: there is none; begins with `where` and names the nearest, or all.
    """
    return find(objectives(), name, "objective", where)
