"""Estimators: from a part of the items to the means over all, with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.judging.constraints import Items

Estimates = Mapping[str, tuple[float, float]]
"""Task → the estimated mean over all items of the split, and its standard error."""

Estimator = Callable[[Items], Estimates]
"""Items with NaN where not measured, at least two of each task measured → estimates."""
