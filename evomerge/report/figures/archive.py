"""The population: its state over the trials, its niches, and the items each member solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import BLUE, COLORS, FAINT, plot_layout, shown
from evomerge.results.written_numbers import short

UNITS = {"coverage": "coverage", "entropy": "entropy, bits an item"}
STROKES = {"coverage": (COLORS["winner"], "solid"), "entropy": (COLORS["parent"], "dash")}
MANY = 20
"""Up to this many rows are of full height."""


def archive_state(series: Mapping[str, Mapping[str, Sequence[float]]]) -> go.Figure:
    """Draw coverage and entropy, trial by trial.

    Args:
        series: `state_summary`.
    """
    figure = go.Figure(layout=plot_layout(height=300, right=16, top=40))
    for name, found in series.items():
        color, dash = STROKES[name]
        figure.add_scatter(
            x=found["trial"],
            y=found["value"],
            mode="lines",
            line={"color": color, "dash": dash, "width": 2, "shape": "hv"},
            name=UNITS[name],
            hovertemplate=f"trial %{{x}}, {name}: %{{y:.3f}}<extra></extra>",
        )
    figure.update_xaxes(title_text="trial (its number in the study)", showgrid=False)
    figure.update_yaxes(range=[0, 1.03])
    figure.update_layout(showlegend=True)
    return figure


def niches(members: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw each member's share of the items, those solved by several divided up; largest on top.

    Args:
        members: `niche_summary`.
    """
    row = 22 if len(members) <= MANY else 15
    figure = go.Figure(layout=plot_layout(height=row * len(members) + 110, right=16, top=40))
    names = [f"trial {one['trial']}" for one in members]
    shared = [one["share"] - one["alone"] for one in members]
    for label, values, color in (
        ("solved by it alone", [one["alone"] for one in members], COLORS["winner"]),
        ("its part of what others solve too", shared, BLUE),
    ):
        figure.add_bar(
            x=values,
            y=names,
            orientation="h",
            marker={"color": color},
            name=label,
            customdata=[short(one["value"]) for one in members],
            hovertemplate=f"%{{y}}, score %{{customdata}}<br>{label}: %{{x:.4f}}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.3)
    figure.update_xaxes(title_text="share of all items", rangemode="tozero", nticks=6)
    figure.update_yaxes(
        autorange="reversed", showgrid=False, tickfont={"size": min(12, row // 2 + 3)}
    )
    return figure


def item_matrix(summary: Mapping[str, Any]) -> go.Figure:
    """Draw the items that each solves: a row for each parent and member, a column for each item.

    Args:
        summary: `item_summary`.
    """
    rows, tasks = summary["rows"], summary["tasks"]
    names = [_row_name(one) for one in rows]
    widths = [len(task["values"][0]) for task in tasks]
    gap = max(1.0, 0.012 * sum(widths))
    row = 20 if len(rows) <= MANY else 15
    figure = go.Figure(layout=plot_layout(height=row * len(rows) + 118, right=16, top=40))
    start, middles = 0.0, []
    for task, width in zip(tasks, widths, strict=True):
        figure.add_heatmap(
            z=task["values"],
            x0=start,
            dx=1,
            y=list(range(len(rows))),
            zmin=0,
            zmax=1,
            colorscale=[[0, FAINT], [1, COLORS["winner"]]],
            showscale=False,
            ygap=2,
            hoverongaps=False,
            hovertemplate=f"%{{y}}, {shown(task['task'])}: %{{z:.2f}}<extra></extra>",
        )
        middles.append(start + (width - 1) / 2)
        start += width + gap
    for label, color in (("solved", COLORS["winner"]), ("not solved", FAINT)):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "square", "size": 11, "color": color},
            name=label,
        )
    if any(one["estimated"] for one in rows):
        hollow = {"symbol": "square-open", "size": 11, "color": COLORS["baseline"]}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=hollow, name="not measured")
    figure.update_xaxes(
        tickvals=middles,
        ticktext=[shown(task["task"], 22) for task in tasks],
        tickangle=0 if len(tasks) <= 3 else -30 if len(tasks) <= 6 else -45,
        ticks="",
        range=[-0.5 - gap, start - 0.5],
        showgrid=False,
        zeroline=False,
        title_text="items, from the easiest to the hardest",
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=names,
        tickfont={"size": min(12, row // 2 + 3)},
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def elites(grid: Mapping[str, Any]) -> go.Figure:
    """Draw the elite of every cell of a grid over two measures, by its score.

    Args:
        grid: `grid_summary`.
    """
    across, up = [*grid["measures"], "", ""][:2]
    columns, lines = grid["shape"]
    values: list[list[float | None]] = [[None] * columns for _ in range(lines)]
    trials = [[""] * columns for _ in range(lines)]
    for cell in grid["cells"]:
        i, j = cell["place"]
        values[j][i] = cell["value"]
        trials[j][i] = f"trial {cell['trial']}"
    figure = go.Figure(layout=plot_layout(height=430, right=16, top=16))
    (left, right), (low, high) = grid["bounds"]
    wide, tall = (right - left) / columns, (high - low) / lines
    figure.add_heatmap(
        z=values,
        x0=left + wide / 2,
        dx=wide,
        y0=low + tall / 2,
        dy=tall,
        customdata=trials,
        colorscale="Viridis",
        colorbar={"thickness": 10, "outlinewidth": 0},
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="%{customdata}: %{z:.4f}<extra></extra>",
    )
    figure.update_xaxes(title_text=shown(across, 40), range=[left, right], showgrid=False)
    figure.update_yaxes(title_text=shown(up, 40), range=[low, high], showgrid=False)
    return figure


def _row_name(row: Mapping[str, Any]) -> str:
    beside = {"winner": " ★", "parent": "", "member": ""}[row["role"]]
    return f"{shown(row['name'], 20)}{beside}{' (est.)' if row['estimated'] else ''}"
