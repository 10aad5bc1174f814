"""A judge of two tasks with ten items each, and invented items."""

from __future__ import annotations

import numpy as np

from evomerge.config import ConstraintConfig
from evomerge.judging.constraints import Constraints
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge
from evomerge.judging.selection import Judged

TASKS = ["a", "b"]


def judge(
    kind="mean",
    options=None,
    signs=(1, 1),
    weights=(1, 1),
    constraints=(),
    parents=None,
    beside=(),
):
    built = Judge(
        find_objective(kind, "fitness.objective", options, TASKS),
        TASKS,
        np.array(weights, float),
        np.array(signs, float),
        Constraints(
            [ConstraintConfig.model_validate(c) for c in constraints],
            dict(zip(TASKS, signs, strict=True)),
            beside,
        ),
    )
    return built.against(parents or {})


def items(a, b):
    """Ten items a task, the first so many of them right."""
    return {"a": (np.arange(10) < 10 * a) * 1.0, "b": (np.arange(10) < 10 * b) * 1.0}


PARENTS = {"base": items(0.2, 0.2), "math": items(0.8, 0.1), "lang": items(0.1, 0.5)}


def judged(judge, **recipes):
    return [
        Judged(name, name, None if found is None else judge.scores(found))
        for name, found in recipes.items()
    ]
