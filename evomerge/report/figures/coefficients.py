"""Coefficients as a map: layer by expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import plot_layout, shown

VIRIDIS_DARK = 0.45
"""The share of the scale up to which white text contrasts more than black (ratio ≥ 4.3)."""


def heat_map(parameter: str, table: Mapping[str, Any]) -> go.Figure:
    """Draw one searched parameter of a recipe, layer × expert; colours span the searched range.

    Args:
        parameter: its name.
        table: `coefficient_summary`'s entry for it.
    """
    rows, columns = table["rows"], table["columns"]
    low, high = table["bounds"]
    step = 26 if len(rows) <= 40 else 15
    figure = go.Figure(layout=plot_layout(height=step * len(rows) + 100, right=16, top=0))
    figure.add_heatmap(
        z=table["values"],
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        customdata=[[[shown(row), shown(c, 99)] for c in columns] for row in rows],
        zmin=low,
        zmax=high,
        colorscale="Viridis",
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "y": 1,
            "yanchor": "bottom",
            "ypad": 8,
            "tickvals": [low, (low + high) / 2, high],
            "outlinewidth": 0,
        },
        xgap=2,
        ygap=2 if step > 20 else 1,
        hovertemplate=(
            f"{shown(parameter)}, %{{customdata[0]}}, %{{customdata[1]}}: %{{z:.4f}}<extra></extra>"
        ),
    )
    if len(columns) <= 8:
        figure.add_trace(_cell_texts(table, 12 if step > 20 else 9))
    figure.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[shown(column, 16) for column in columns],
        tickangle=-45 if len(columns) > 3 else None,
        range=[-0.5, len(columns) - 0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[shown(row) for row in rows],
        tickfont={"size": 12 if step > 20 else 10},
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _cell_texts(table: Mapping[str, Any], size: int) -> go.Scatter:
    """The value in every cell, white on the dark half of the colour scale, black on the light."""
    low, high = table["bounds"]
    cells = [
        (x, y, value)
        for y, row in enumerate(table["values"])
        for x, value in enumerate(row)
        if value is not None
    ]
    dark = low + VIRIDIS_DARK * (high - low)
    return go.Scatter(
        x=[x for x, _, _ in cells],
        y=[y for _, y, _ in cells],
        text=[f"{value:.2f}" for _, _, value in cells],
        textfont={
            "size": size,
            "color": ["white" if value < dark else "black" for _, _, value in cells],
        },
        mode="text",
        hoverinfo="skip",
        showlegend=False,
    )
