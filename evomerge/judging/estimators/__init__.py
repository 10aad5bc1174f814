"""Estimators: from the items that were measured to the means over all, with their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.judging.constraints import Items

Estimates = Mapping[str, tuple[float, float]]
"""task → the estimated mean over all items of the split, and its standard error."""

Estimator = Callable[[Items], Estimates]
"""Items with NaN where not measured, at least two of each task measured → estimates."""
