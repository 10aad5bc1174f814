"""Gradient descents: loss and score over items, genes over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import COLORS, FAINT, PALETTE, plot_layout, shown

Curve = Mapping[str, Any]
"""An entry of `results.descents.descent_curves`."""
POINT = "point at a line for its name"
NAMED = 4
"""Most descents that the legend names; of more it would fill the figure, and each says its name
where it is pointed at."""
NAMED_GENES = 12
"""Most genes that the legend names."""


def losses(curves: Sequence[Curve], scores: Mapping[str, Sequence[float]], scale: str) -> go.Figure:
    """Draw every descent's loss over the items spent, and under it the trials' search scores.

    Args:
        curves: `descent_curves`, one at least.
        scores: `score_curve`.
        scale: the title of the scores' axis.
    """
    figure = go.Figure(layout=plot_layout(height=520, right=16, top=40))
    for place, curve in enumerate(curves):
        color, name = PALETTE[place % len(PALETTE)], _name(curve)
        # 1. losses of the steps' documents, faint, for each is of other documents
        figure.add_scatter(
            x=curve["step_items"],
            y=curve["losses"],
            mode="lines+markers" if not curve["held_back"] else "lines",
            line={"color": FAINT if curve["held_back"] else color, "width": 1},
            name=name,
            legendgroup=name,
            hovertemplate=f"{name}, its step's documents: %{{y:.4g}}<extra></extra>",
            showlegend=not curve["held_back"] and len(curves) <= NAMED,
        )
        # 2. losses of the documents held back
        figure.add_scatter(
            x=curve["look_items"],
            y=curve["held_back"],
            mode="lines+markers",
            line={"color": color, "width": 2},
            name=name,
            legendgroup=name,
            hovertemplate=f"{name}, held back: %{{y:.4g}} after %{{x:,}} items<extra></extra>",
            showlegend=bool(curve["held_back"]) and len(curves) <= NAMED,
        )
    # 3. scores, in the panel below
    figure.add_scatter(
        x=scores["items"],
        y=scores["value"],
        yaxis="y2",
        mode="markers",
        marker={"color": COLORS["winner"], "opacity": 0.75, "size": 7},
        name="trial",
        hovertemplate="a trial: %{y:.4f} after %{x:,} items<extra></extra>",
        showlegend=False,
    )
    figure.add_scatter(
        x=scores["items"],
        y=scores["best"],
        yaxis="y2",
        mode="lines",
        line={"color": COLORS["winner"], "shape": "hv", "width": 2},
        name="best so far",
        hovertemplate="best so far: %{y:.4f}<extra></extra>",
    )
    figure.update_xaxes(title_text="items", rangemode="tozero", showgrid=False)
    figure.update_layout(
        xaxis={"anchor": "y2"},
        yaxis={"title": {"text": "loss"}, "domain": [0.54, 1.0]},
        yaxis2={
            "title": {"text": shown(scale, 60), "font": {"size": 13}},
            "domain": [0.0, 0.46],
            "automargin": True,
        },
    )
    return figure


def genes(curve: Curve, names: Sequence[str]) -> go.Figure:
    """Draw where a descent led each gene, step by step, as shares of the genes' ranges.

    Args:
        curve: one with `genes`.
        names: of the genes, in the genome's order.
    """
    figure = go.Figure(layout=plot_layout(height=340, right=16, top=40))
    for place, name in enumerate(names):
        figure.add_scatter(
            x=curve["look_steps"],
            y=[genome[place] for genome in curve["genes"]],
            mode="lines",
            line={"color": PALETTE[place % len(PALETTE)], "width": 1.5},
            name=shown(name),
            hovertemplate=f"{shown(name, 99)}: %{{y:.3f}} after step %{{x}}<extra></extra>",
            showlegend=len(names) <= NAMED_GENES,
        )
    figure.update_xaxes(title_text="step", showgrid=False, rangemode="tozero")
    figure.update_yaxes(title_text="share of the gene's range", range=[-0.03, 1.03])
    return figure


def _name(curve: Curve) -> str:
    number = "" if curve["trial"] is None else f", trial {curve['trial']}"
    raised = f", for {shown(curve['task'])} above all" if curve["task"] else ""
    return f"from {shown(curve['from'])}{raised}{number}"
