"""Numbers as people read them: scores, intervals, differences and p-values, in every view alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def short(value: float, sign: str = "") -> str:
    """Write three decimals without the zero before the point, so that a row fits a terminal."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.3f}"


def span(found: Mapping[str, float], sign: str = "") -> str:
    """Write an interval: `[.981, 1.000]`; with sign "+", a signed one."""
    return f"[{short(found['low'], sign)}, {short(found['high'], sign)}]"


def difference(found: Mapping[str, float]) -> str:
    """Write a paired difference with its interval: `+.304 [+.256, +.352]`."""
    return f"{short(found['difference'], '+')} {span(found, '+')}"


def p_value(value: float) -> str:
    """Write a p-value with three decimals."""
    return "<.001" if value < 0.001 else short(value)


def trial_line(found: Mapping[str, Any]) -> str:
    """Name a trial by its number in the study, and say which of the search's trials it is, or from
    which it was polished.

    The number is what `--trial` takes; parents, baselines and finalists have numbers too.
    """
    if origin := found.get("polished"):
        on_select = "" if origin["select"] is None else f" ({short(origin['select'])} on select)"
        begun = f"polished from trial {origin['from']}{on_select}"
        return f"trial {found['trial']} of the study, {begun}"
    if not found["tried"]:
        return f"trial {found['trial']}"
    place, count = found["tried"]
    return f"trial {found['trial']} of the study, number {place} of {count} tried"
