"""The origin of a recipe: its ancestors, and its path through the models' layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import (
    BLUE,
    COLORS,
    ESTIMATED,
    FAINT,
    PALETTE,
    plot_layout,
    shown,
    star,
)

LINE_SYMBOLS = ("square", "diamond", "circle", "triangle-up", "x", "star", "hexagon", "pentagon")
"""Marks of the models that layers come from, so that not colour alone tells them apart."""
SCALES_SHOWN = 24
"""The most slots that are labelled with the scales of their inputs."""


def family_tree(
    family: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], label: str, scale: str
) -> go.Figure:
    """Draw a trial's ancestors among all trials, from left to right in the order of the search.

    Args:
        family: `ancestry_summary`.
        trials: `Results.trials`, drawn faintly behind.
        label: name of the trial ("winner").
        scale: the axis title.
    """
    figure = go.Figure(layout=plot_layout(height=420, right=16))
    members = {one["trial"]: one for one in family["trials"]}
    others = [t for t in trials if t["trial"] not in members and t["value"] is not None]
    figure.add_scatter(
        x=[t["trial"] for t in others],
        y=[t["value"] for t in others],
        mode="markers",
        marker={
            "color": COLORS["baseline"],
            "opacity": 0.35,
            "size": 5,
            "symbol": [ESTIMATED if t["estimated"] else "circle" for t in others],
        },
        name="other trials",
        hovertemplate="trial %{x}: %{y:.4f}<extra></extra>",
    )
    for name, near, style in (
        ("ancestry", False, {"color": "rgba(125, 133, 144, 0.45)", "width": 1}),
        ("its parents and theirs", True, {"color": COLORS["winner"], "width": 1.8}),
    ):
        edges = [
            (members[parent], child)
            for child in members.values()
            for parent in child["parents"]
            if (child["generation"] < 2) == near
        ]
        figure.add_scatter(
            x=[x for a, b in edges for x in (a["trial"], b["trial"], None)],
            y=[y for a, b in edges for y in (a["value"], b["value"], None)],
            mode="lines",
            line=style,
            hoverinfo="skip",
            name=name,
        )
    for name, symbol, color, found in (
        ("ancestor", "circle", COLORS["winner"], [m for m in members.values() if m["parents"]]),
        (
            "without parents",
            "diamond",
            COLORS["parent"],
            [m for m in members.values() if not m["parents"]],
        ),
    ):
        figure.add_trace(_ancestors(name, symbol, color, found))
    me = next(m for m in members.values() if m["generation"] == 0)
    figure.add_trace(star(me["trial"], [me["value"]], label))
    ends = [trials[0]["trial"] - 0.5, trials[-1]["trial"] + 0.5]
    figure.update_xaxes(title_text="trial (its number in the study)", range=ends, showgrid=False)
    figure.update_yaxes(title_text=shown(scale, 60))
    return figure


def data_flow(
    path: Sequence[Mapping[str, Any]], others: Sequence[Sequence[Mapping[str, Any]]]
) -> go.Figure:
    """Draw the path of a recipe: the model and the layer in each slot.

    Args:
        path: `path_summary`.
        others: paths of the population, drawn faintly behind.
    """
    figure = go.Figure(layout=plot_layout(height=420, right=16))
    for place, other in enumerate(others):
        figure.add_scatter(
            x=list(range(len(other))),
            y=[slot["layer"] for slot in other],
            mode="lines",
            line={"color": FAINT, "width": 1.5},
            hoverinfo="skip",
            name="the population's paths",
            legendgroup="others",
            showlegend=place == 0,
        )
    figure.add_scatter(
        x=list(range(len(path))),
        y=[slot["layer"] for slot in path],
        mode="lines",
        line={"color": BLUE, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    scaled = any(slot["scale"] != 1 for slot in path) and len(path) <= SCALES_SHOWN
    for place, source in enumerate(dict.fromkeys(slot["source"] for slot in path)):
        own = [(at, slot) for at, slot in enumerate(path) if slot["source"] == source]
        figure.add_scatter(
            x=[at for at, _ in own],
            y=[slot["layer"] for _, slot in own],
            mode="markers+text" if scaled else "markers",
            marker={
                "color": PALETTE[place % len(PALETTE)],
                "symbol": LINE_SYMBOLS[place % len(LINE_SYMBOLS)],
                "size": 13 if len(path) <= 40 else 8,
            },
            text=[f"×{slot['scale']:.2f}" for _, slot in own] if scaled else None,
            textposition="top center",
            textfont={"size": 10},
            customdata=[f"{slot['scale']:.3g}" for _, slot in own],
            hovertemplate=(
                f"slot %{{x}}: layer %{{y}} of {shown(source)}, input × %{{customdata}}"
                "<extra></extra>"
            ),
            name=shown(source),
            cliponaxis=False,
        )
    deepest = max(slot["layer"] for way in (path, *others) for slot in way)
    figure.update_xaxes(
        title_text="slot, from input to output",
        dtick=1 if len(path) <= 16 else None,
        range=[-0.6, max(len(way) for way in (path, *others)) - 0.4],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        title_text="layer of the source",
        dtick=1 if deepest <= 12 else None,
        range=[-0.6, deepest + 0.6],
        zeroline=False,
    )
    return figure


def _ancestors(
    name: str, symbol: str, color: str, found: Sequence[Mapping[str, Any]]
) -> go.Scatter:
    """Draw ancestors as marks: filled where measured, open where the score is an estimate.

    The measured come first, because the legend shows the first one's mark.
    """
    found = sorted(found, key=lambda m: m["estimated"])
    return go.Scatter(
        x=[m["trial"] for m in found],
        y=[m["value"] for m in found],
        mode="markers",
        marker={
            "color": color,
            "size": 8,
            "symbol": [f"{symbol}-open" if m["estimated"] else symbol for m in found],
        },
        customdata=[
            f"{'estimated, ' if m['estimated'] else ''}generation −{m['generation']}" for m in found
        ],
        hovertemplate="trial %{x}: %{y:.4f} (%{customdata})<extra></extra>",
        name=name,
        cliponaxis=False,
    )
