"""The mean of what was measured: unbiased, for a rung holds items in the split's proportions."""

from __future__ import annotations

import numpy as np

from evomerge.judging.constraints import Items, Values
from evomerge.judging.estimators import Estimates


def mean(items: Items) -> Estimates:
    """Estimate every task's mean by that of its measured items.

    se² = s² (1/k − 1/N), for k of N items drawn without replacement.
    """
    return {task: mean_of(values) for task, values in items.items()}


def mean_of(values: Values) -> tuple[float, float]:
    """Estimate one task's mean, with its standard error; `values`: (items,), NaN: not measured."""
    measured = values[np.isfinite(values)]
    missing = 1 / len(measured) - 1 / len(values)
    return float(measured.mean()), float(np.sqrt(np.var(measured, ddof=1) * missing))
