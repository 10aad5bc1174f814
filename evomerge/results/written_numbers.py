"""Numbers as people read them: scores, intervals, differences and p-values, in every view alike."""

from __future__ import annotations

from collections.abc import Mapping


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
