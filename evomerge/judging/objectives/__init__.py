"""Objectives: task means to one number, one file each.

An objective is a function `(means, weights) → value` over arrays of shape (..., tasks) and
(tasks,), vectorised over the leading axes, so that intervals can be had by resampling. Means are
signed: larger is better for every task; a task of weight 0 is a measure beside the score. Put it in
a file of this folder under `@objective`, in another package's entry point of the group
`evomerge.objectives`, or write `module:function` in the campaign file. Further parameters are
filled in where they are named: `parents`, the parents' signed means on the same items, shape
(parents, tasks); `tasks`, the names; `signs`, −1 where the metric itself is the better the smaller.
Keyword-only parameters are options of the campaign file.

A multi-objective one registers under `@objective(goals=…, ranking=…)`: `goals` takes the same
arguments and gives what an optimizer maximises, shape (..., goals); `ranking` takes feasible
candidates' goals and values, shapes (n, goals) and (n,), and the options, and gives scores by which
finalists and the winner are chosen, −∞ for those not to be chosen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from evomerge.common.errors import InputError
from evomerge.common.plugins import Registry, check_options

Values = NDArray[np.float64]
ObjectiveFunction = Callable[..., Values]
F = TypeVar("F", bound=ObjectiveFunction)


@dataclass(frozen=True)
class Objective:
    """A registered objective, with its options once they are known.

    Attributes:
        goals: task means → the goals of a multi-objective optimizer; None: the value alone.
        ranking: (goals, values) → scores to choose by; None: by value.
        check: `(tasks, options)` → None; raises InputError for options that do not fit the tasks.
    """

    name: str
    function: ObjectiveFunction
    goals: ObjectiveFunction | None = None
    ranking: ObjectiveFunction | None = None
    check: Callable[..., None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def needs_parents(self) -> bool:
        """True where the value of a recipe depends on the parents' scores."""
        return "parents" in inspect.signature(self.function).parameters

    def given(self, function: ObjectiveFunction, known: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the keyword arguments of `function`: what it names of `known`; options."""
        named = inspect.signature(function).parameters
        filled = {name: value for name, value in known.items() if name in named}
        return {**filled, **self.options}


def _accept(found: Any, name: str) -> Objective:
    """Make an objective of a function, registered or not; `name` is what it was asked for by."""
    if isinstance(found, type) or not callable(found):
        raise TypeError("is no function of task means and weights")
    registered = [known for known in REGISTRY.known.values() if known.function is found]
    return next(
        (known if known.name == name else replace(known, name=name) for known in registered),
        Objective(name, found),
    )


REGISTRY = Registry[Objective](
    kind="objective", package=__name__, group="evomerge.objectives", accept=_accept
)


@overload
def objective(function: F) -> F: ...


@overload
def objective(
    *,
    goals: ObjectiveFunction,
    ranking: ObjectiveFunction | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[F], F]: ...


def objective(function: Any = None, **more: Any) -> Any:
    """Register a function as an objective under its own name."""
    if function is None:
        return lambda decorated: _register(decorated, **more)
    return _register(function)


def _register(function: F, **more: Any) -> F:
    name = function.__name__
    REGISTRY.add(name, Objective(name, function, **more))
    return function


def objectives() -> Mapping[str, Objective]:
    """Every registered objective by name, in alphabetical order."""
    return REGISTRY.all()


def find_objective(
    name: str,
    where: str,
    options: Mapping[str, Any] | None = None,
    tasks: Sequence[str] | None = None,
) -> Objective:
    """Find the objective called `name`; its options are checked, against the tasks when given.

    Raises:
        InputError: there is none, or an option is unknown or of the wrong type; begins with
            `where` and names the nearest, or all.
    """
    found = REGISTRY.find(name, where)
    checked = check_options(found.function, options or {}, where, of=name)
    if found.check is not None and tasks is not None:
        try:
            found.check(tasks, **checked)
        except InputError as error:
            raise InputError(f"{where}.{error}") from None
    return replace(found, options=checked)
