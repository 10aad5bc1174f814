"""Scores: against parents and baselines, and a front of goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import COLORS, DASHES, SYMBOLS, plot_layout, shown
from evomerge.results.written_numbers import short

QUIET = "rgba(125, 133, 144, 0.6)"

Rows = Mapping[tuple[str, str], Mapping[str, float]]
"""("winner" | "parent" | "baseline", name) → `mean`, `low`, `high`."""


def forest(rows: Rows, scale: str, *, legend: bool = True) -> go.Figure:
    """Draw means as dots with their 95 % intervals, a row each, the winner on top.

    Args:
        rows: the winner, parents and baselines.
        scale: the axis title.
        legend: if true, the figure explains its symbols.
    """
    height = 34 * len(rows) + (110 if legend else 70)
    figure = go.Figure(layout=plot_layout(height=height, right=16, top=40 if legend else 16))
    places = {row: len(rows) - 1 - place for place, row in enumerate(rows)}
    for role in COLORS:
        group = {row: scores for row, scores in rows.items() if row[0] == role}
        if not group:
            continue
        means = [s["mean"] for s in group.values()]
        figure.add_scatter(
            x=means,
            y=[places[row] for row in group],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [s["high"] - s["mean"] for s in group.values()],
                "arrayminus": [s["mean"] - s["low"] for s in group.values()],
                "thickness": 1.6,
                "width": 4,
            },
            mode="markers+text",
            marker={"color": COLORS[role], "symbol": SYMBOLS[role], "size": 10},
            text=[short(mean) for mean in means],
            textposition="top center",
            textfont={"size": 10},
            customdata=[[shown(name, 99), s["low"], s["high"]] for (_, name), s in group.items()],
            hovertemplate=(
                "%{customdata[0]}: %{x:.4f}<br>95 %: %{customdata[1]:.4f} to %{customdata[2]:.4f}"
                "<extra></extra>"
            ),
            name=next(iter(group))[1] if role == "winner" else role,
            showlegend=legend,
            cliponaxis=False,
        )
    figure.update_xaxes(title_text=shown(scale, 60), nticks=6)
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=[shown(name, 26) for _, name in places],
        range=[-0.6, len(rows) - 0.3],
        showgrid=False,
        zeroline=False,
    )
    return figure


def front(rows: Sequence[Mapping[str, Any]], label: str) -> go.Figure:
    """Draw a front of two goals: on search, the finalists on select, all on test, and parents.

    Args:
        rows: `report.tables.front_rows`.
        label: the name of the preferred ("winner").
    """
    across, up = rows[0]["search"]
    figure = go.Figure(layout=plot_layout(height=420, right=16))
    for role, split, symbol in (
        ("merge", "search", "circle"),
        ("merge", "select", "circle-open"),
        ("merge", "test", "x-thin-open"),
        ("parent", "search", "diamond"),
        ("parent", "test", "diamond-open"),
    ):
        scored = [row for row in rows if row["role"] == role and row[split]]
        if not scored:
            continue
        scored.sort(key=lambda row: row[split][across])
        called = [
            (f"trial {row['name']}" if role == "merge" else shown(row["name"], 99))
            + (f" ({label})" if row["preferred"] else "")
            for row in scored
        ]
        color = COLORS["winner" if role == "merge" else "parent"]
        named = role == "parent" and split == "search"
        figure.add_scatter(
            x=[row[split][across] for row in scored],
            y=[row[split][up] for row in scored],
            mode="markers+text" if named else "markers",
            text=[shown(row["name"], 18) for row in scored] if named else None,
            textposition="top center",
            marker={
                "color": color,
                "symbol": symbol,
                "opacity": 1,
                "size": [15 if row["preferred"] else 8 for row in scored],
                "line": {"width": 1.5, "color": color},
            },
            customdata=called,
            hovertemplate=f"%{{customdata}} on {split}: %{{x:.4f}}, %{{y:.4f}}<extra></extra>",
            name=f"parents on {split}" if role == "parent" else f"on {split}",
            cliponaxis=False,
        )
    figure.update_xaxes(title_text=shown(across, 60))
    figure.update_yaxes(title_text=shown(up, 60))
    return figure


def front_lines(rows: Sequence[Mapping[str, Any]], label: str) -> go.Figure:
    """Draw a front of three goals or more on search: a line for each trial across the goals.

    Parents are dotted.

    Goals that do not all lie in [0, 1] are scaled, each from its least to its largest on the front.

    Args:
        rows: `report.tables.front_rows`.
        label: the name of the preferred ("winner").
    """
    goals = list(rows[0]["search"])
    figure = go.Figure(layout=plot_layout(height=420, right=24))
    raw = {goal: [row["search"][goal] for row in rows if row["search"]] for goal in goals}
    scaled = any(not 0 <= value <= 1 for values in raw.values() for value in values)
    ranges = {g: (min(v), max(v)) if scaled else (0.0, 1.0) for g, v in raw.items()}
    last = sorted((row for row in rows if row["search"]), key=lambda row: row["preferred"])
    first = {
        role: next((r for r in last if r["role"] == role), None) for role in ("merge", "parent")
    }
    for point in last:
        mine, parent = point["preferred"], point["role"] == "parent"
        values = [point["search"][goal] for goal in goals]
        spans = [ranges[goal] for goal in goals]
        name = shown(point["name"], 99) if parent else f"trial {point['name']}"
        name += f" ({label})" if mine else ""
        color = COLORS["winner"] if mine else COLORS["parent"] if parent else QUIET
        dash = {"dash": DASHES["parent"]} if parent else {}
        figure.add_scatter(
            x=[shown(goal, 18) for goal in goals],
            y=[
                (v - low) / ((high - low) or 1.0)
                for v, (low, high) in zip(values, spans, strict=True)
            ],
            mode="lines+markers",
            line={"color": color, "width": 3 if mine else 1.2, **dash},
            marker={"size": 9 if mine else 5},
            customdata=values,
            hovertemplate=f"{name}, %{{x}}: %{{customdata:.4f}}<extra></extra>",
            name=name if mine else "parents" if parent else "on the front",
            showlegend=mine or point is first[point["role"]],
        )
    figure.update_xaxes(showgrid=True, range=[-0.15, len(goals) - 0.85])
    figure.update_yaxes(title_text="from the worst of the front to its best" if scaled else None)
    return figure
