"""The root of a function of one number, by Brent's method.

With the steps of `scipy.optimize.brentq`, and so its bits; to import that package takes a sixth of
a second, which is much for a command that looks at a study.
"""

from __future__ import annotations

import math
from collections.abc import Callable

STEPS = 100
"""Most steps; bisection alone needs about half of them."""


def root(f: Callable[[float], float], low: float, high: float, *, within: float) -> float:
    """Find where `f` is 0 between `low` and `high`, at which its signs differ.

    Args:
        within: how far the result may be off, beside four units in the last place.

    Raises:
        ValueError: the signs at the ends are equal.

    Source:
        Brent 1973, Algorithms for Minimization without Derivatives, chapter 4.
    """
    before, here = low, high
    f_before, f_here = float(f(before)), float(f(here))
    if f_before == 0 or f_here == 0:
        return before if f_before == 0 else here
    if (f_before > 0) == (f_here > 0):
        raise ValueError(f"the function has one sign at {low} and {high}")
    across, f_across, step_before, step = before, f_before, here - before, here - before
    for _ in range(STEPS):
        # 1. keep the root between `here`, the better end, and `across`
        if f_before != 0 and (f_before > 0) != (f_here > 0):
            across, f_across = before, f_before
            step_before = step = here - before
        if abs(f_across) < abs(f_here):
            before, here, across = here, across, here
            f_before, f_here, f_across = f_here, f_across, f_here
        # 2. done when the half of what lies between is within the tolerance
        tolerance = (within + 4 * math.ulp(1.0) * abs(here)) / 2
        half = (across - here) / 2
        if f_here == 0 or abs(half) < tolerance:
            return here
        # 3. a secant through two points, or an inverse parabola through three; else bisection
        step_before, step = _steps(
            (before, f_before), (here, f_here), (across, f_across), step_before, step, tolerance
        )
        # 4. go there, by the tolerance at least
        before, f_before = here, f_here
        here += step if abs(step) > tolerance else math.copysign(tolerance, half)
        f_here = float(f(here))
    return here


def _steps(
    before: tuple[float, float],
    here: tuple[float, float],
    across: tuple[float, float],
    step_before: float,
    step: float,
    tolerance: float,
) -> tuple[float, float]:
    """The step before the next one, and the next: interpolated where that shrinks fast enough."""
    (x0, f0), (x1, f1), (x2, f2) = before, here, across
    half = (x2 - x1) / 2
    if abs(step_before) <= tolerance or abs(f1) >= abs(f0):
        return half, half
    if x0 == x2:
        tried = -f1 * (x1 - x0) / (f1 - f0)
    else:
        slope0, slope2 = (f0 - f1) / (x0 - x1), (f2 - f1) / (x2 - x1)
        tried = -f1 * (f2 * slope2 - f0 * slope0) / (slope2 * slope0 * (f2 - f0))
    if 2 * abs(tried) < min(abs(step_before), 3 * abs(half) - tolerance):
        return step, tried
    return half, half
