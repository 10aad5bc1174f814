"""The figures' common style: colours, symbols, layout, and how names are shown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

COLORS = {"winner": "#2f7fc1", "parent": "#d07a1f", "baseline": "#7d8590", "failed": "#b5478f"}
SYMBOLS = {"winner": "circle", "parent": "diamond", "baseline": "square"}
DASHES = {"parent": "dot", "baseline": "dash"}
PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7300", "#56b4e9", "#7a4fbf", "#7d8590"
)  # fmt: skip
"""Okabe & Ito's palette, its yellow darkened, and two more: told apart by the colour-blind."""
BLUE = "rgba(47, 127, 193, 0.35)"
"""The winner's colour, for areas."""
FAINT = "rgba(125, 133, 144, 0.25)"
ESTIMATED = "circle-open"
"""The symbol of a score that is an estimate; measured ones are filled."""
DRAWN = 2000
"""The most points of one kind that are drawn, or steps of a curve: more cannot be told apart."""
ONLY_NARROW = "only narrow"
"""A trace's `meta`: the legend names it on pages too narrow for labels beside the plot."""


def plot_layout(height: int, right: int, top: int = 56) -> dict[str, Any]:
    """Give the layout that all figures share; sizes in pixels."""
    axis = {"automargin": True, "title": {"standoff": 8, "font": {"size": 13}}}
    return {
        "template": go.layout.Template(),
        "height": height,
        "margin": {"l": 56, "r": right, "t": top, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "xaxis": axis,
        "yaxis": axis,
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
        },
        "hovermode": "closest",
    }


def drawn_places(count: int) -> list[int]:
    """Choose which of so many points are drawn, in order: all, or of many every so many-th."""
    places = list(range(0, count, -(-count // DRAWN) or 1))
    return places if not count or places[-1] == count - 1 else [*places, count - 1]


def star(trial: int, values: Sequence[float], label: str) -> go.Scatter:
    """Draw the marked trial as a star; `label`: its name; `values`: its score, or none."""
    return go.Scatter(
        x=[trial],
        y=values,
        mode="markers",
        marker={
            "color": COLORS["winner"],
            "symbol": "star",
            "size": 15,
            "line": {"color": "white", "width": 1},
        },
        name=f"trial {trial} ({label})",
        hovertemplate=f"{label}, trial %{{x}}: %{{y:.4f}}<extra></extra>",
    )


def shown(text: str, length: int = 40) -> str:
    """Write a name for plotly: mark-up escaped, and the middle left out where it is long."""
    if len(text) > length:
        tail = (length - 1) // 2
        text = f"{text[: length - 1 - tail]}…{text[-tail:]}"
    return html.escape(text)
