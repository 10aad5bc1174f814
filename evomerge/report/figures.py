"""The report's figures, from plain summaries.

The page sets the colours of text and grid lines, which depend on the reader's colour scheme; the
colours here are legible on white and on near-black, and no meaning rests on colour alone.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from evomerge.report.tables import short

COLORS = {"winner": "#2f7fc1", "parent": "#d07a1f", "baseline": "#7d8590", "failed": "#b5478f"}
SYMBOLS = {"winner": "circle", "parent": "diamond", "baseline": "square"}
DASHES = {"parent": "dot", "baseline": "dash"}
BAND = "rgba(47, 127, 193, 0.22)"
NORMAL_95 = 1.96
VIRIDIS_DARK = 0.45
"""Up to this share of the scale white text contrasts more than black, beyond it black (≥ 4.3)."""
ONLY_NARROW = "only narrow"
"""A trace's meta: the legend names it where the page is too narrow for labels beside the plot."""

Trial = Mapping[str, Any]
"""An entry of `search_summary`."""
Yardsticks = Mapping[tuple[str, str], float]
"""("parent" | "baseline", name) → value."""
Rows = Mapping[tuple[str, str], Mapping[str, float]]
"""("winner" | "parent" | "baseline", name) → `mean`, `low`, `high`."""


def progress(
    trials: Sequence[Trial], yardsticks: Yardsticks, marked: tuple[int, str], scale: str
) -> go.Figure:
    """Search scores, trial by trial, with the running best and its 95 % interval.

    Args:
        trials: `search_summary`; at least one was measured on all items.
        yardsticks: drawn as horizontal lines.
        marked: the number of the trial to mark, and what it is ("winner").
        scale: the axis title.
    """
    figure = go.Figure(layout=plot_layout(height=440, right=210))
    ends = [trials[0]["trial"] - 0.5, trials[-1]["trial"] + 0.5]
    done = [t for t in trials if t["value"] is not None and not t["estimated"]]
    guessed = [t for t in trials if t["estimated"]]
    reached = list(accumulate(done, _better))
    band = _band(done, reached, ends[1])
    figure.add_traces([*band, *_stopped(guessed), _points(done)])
    for (role, name), value in yardsticks.items():
        figure.add_scatter(
            x=ends,
            y=[value, value],
            mode="lines",
            line={"color": COLORS[role], "dash": DASHES[role], "width": 1.5},
            name=f"{role} {shown(name)} {short(value)}",
            hovertemplate=f"{role} {shown(name, 99)}: %{{y:.4f}}<extra></extra>",
            showlegend=False,
            meta=ONLY_NARROW,
        )
    figure.add_scatter(
        x=[t["trial"] for t in done] + ends[1:],
        y=[t["value"] for t in reached] + [reached[-1]["value"]],
        mode="lines",
        line={"color": COLORS["winner"], "shape": "hv", "width": 2},
        name="best so far",
        hovertemplate="best so far: %{y:.4f}<extra></extra>",
    )
    number, label = marked
    figure.add_scatter(
        x=[number],
        y=[t["value"] for t in done if t["trial"] == number],
        mode="markers",
        marker={
            "color": COLORS["winner"],
            "symbol": "star",
            "size": 15,
            "line": {"color": "white", "width": 1},
        },
        name=f"trial {number} ({label})",
        hovertemplate=f"{label}, trial %{{x}}: %{{y:.4f}}<extra></extra>",
    )
    values = [*yardsticks.values(), *(t["value"] for t in done + guessed), *band[0].y, *band[1].y]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05
    figure.add_traces(_failures(trials, low - pad))
    _label_lines(figure, yardsticks, (low - 1.8 * pad, high + 1.8 * pad))
    figure.update_xaxes(
        title_text="trial (its number in the study)",
        range=ends,
        dtick=1 if ends[1] - ends[0] <= 10 else None,
        showgrid=False,
    )
    figure.update_yaxes(title_text=shown(scale, 60), range=[low - 1.8 * pad, high + 1.8 * pad])
    return figure


def forest(rows: Rows, scale: str, *, legend: bool = True) -> go.Figure:
    """Means as dots with their 95 % intervals, a row each, the winner on top.

    Args:
        rows: the winner, parents and baselines.
        scale: the axis title.
        legend: whether the figure explains its symbols.
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


def front(points: Sequence[Mapping[str, Any]], marked: str, label: str) -> go.Figure:
    """A front of two goals: on search, and the finalists again on select.

    Args:
        points: `best_summary`'s front.
        marked: the digest of the recipe to mark, and `label`, what it is ("winner").
    """
    across, up = points[0]["search"]
    figure = go.Figure(layout=plot_layout(height=400, right=16))
    for split, color, symbol in (
        ("search", COLORS["winner"], "circle"),
        ("select", COLORS["parent"], "diamond"),
    ):
        scored = [p for p in points if p[split]]
        scored.sort(key=lambda p: p[split][across])
        figure.add_scatter(
            x=[p[split][across] for p in scored],
            y=[p[split][up] for p in scored],
            mode="markers",
            marker={
                "color": color,
                "symbol": symbol,
                "size": [15 if p["digest"] == marked else 8 for p in scored],
            },
            customdata=[
                f"trial {p['trial']}" + (f" ({label})" if p["digest"] == marked else "")
                for p in scored
            ],
            hovertemplate=f"%{{customdata}} on {split}: %{{x:.4f}}, %{{y:.4f}}<extra></extra>",
            name=f"on {split}",
        )
    figure.update_xaxes(title_text=shown(across, 60))
    figure.update_yaxes(title_text=shown(up, 60))
    return figure


def heat_map(parameter: str, table: Mapping[str, Any]) -> go.Figure:
    """One searched parameter of a recipe, layer × expert; colours span the searched range.

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


def plot_layout(height: int, right: int, top: int = 56) -> dict[str, Any]:
    """What all figures have in common; sizes in pixels."""
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


def shown(text: str, length: int = 40) -> str:
    """A name as plotly shall show it: no mark-up, and its middle left out where it is long."""
    if len(text) > length:
        tail = (length - 1) // 2
        text = f"{text[: length - 1 - tail]}…{text[-tail:]}"
    return html.escape(text)


def _better(one: Trial, other: Trial) -> Trial:
    return other if other["value"] > one["value"] else one


def _points(done: Sequence[Trial]) -> go.Scatter:
    return go.Scatter(
        x=[t["trial"] for t in done],
        y=[t["value"] for t in done],
        mode="markers",
        marker={"color": COLORS["winner"], "opacity": 0.6, "size": 6},
        name="trial",
        hovertemplate="trial %{x}: %{y:.4f}<extra></extra>",
    )


def _stopped(guessed: Sequence[Trial]) -> list[go.Scatter]:
    """Trials stopped on a rung, at their estimates, as rings."""
    if not guessed:
        return []
    points = _points(guessed)
    points.update(
        marker={"color": COLORS["winner"], "symbol": "circle-open", "opacity": 0.6, "size": 6},
        name=f"stopped on a rung, estimated ({len(guessed)})",
        hovertemplate="trial %{x}: estimated %{y:.4f}<extra></extra>",
    )
    return [points]


def _band(done: Sequence[Trial], reached: Sequence[Trial], end: float) -> list[go.Scatter]:
    """The running best ± 1.96 standard errors: the lower edge, and the upper filled down to it."""
    x = [t["trial"] for t in done] + [end]
    edges = [
        [t["value"] + side * NORMAL_95 * (t["se"] or 0.0) for t in [*reached, reached[-1]]]
        for side in (-1, 1)
    ]
    line = {"width": 0, "shape": "hv", "color": COLORS["winner"]}
    lower, upper = (
        go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        for y in edges
    )
    upper.update(fill="tonexty", fillcolor=BAND, name="its 95 % interval", showlegend=True)
    return [lower, upper]


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


def _failures(trials: Sequence[Trial], height: float) -> list[go.Scatter]:
    """Failed trials as crosses under the scores."""
    failed = [t for t in trials if t["value"] is None]
    if not failed:
        return []
    return [
        go.Scatter(
            x=[t["trial"] for t in failed],
            y=[height] * len(failed),
            mode="markers",
            marker={"color": COLORS["failed"], "symbol": "x", "size": 8},
            name=f"failed ({len(failed)})",
            customdata=[shown(t["reason"] or "no reason recorded", 80) for t in failed],
            hovertemplate="trial %{x} failed: %{customdata}<extra></extra>",
        )
    ]


def _label_lines(
    figure: go.Figure, yardsticks: Yardsticks, span: tuple[float, float], plot_height: int = 330
) -> None:
    """Name the lines at the right edge; labels that would overlap move apart, tied by a stroke."""
    ordered = sorted(yardsticks, key=lambda row: yardsticks[row])
    places = _apart([yardsticks[row] for row in ordered], 16 / plot_height, span)
    for row, place in zip(ordered, places, strict=True):
        value = yardsticks[row]
        figure.add_annotation(
            text=f"{shown(row[1], 24)} {short(value)}",
            xref="paper",
            x=1,
            y=value,
            ax=16,
            ay=(value - place) / (span[1] - span[0]) * plot_height,
            xanchor="left",
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor=COLORS[row[0]],
            font={"size": 11},
        )


def _apart(values: Sequence[float], gap: float, span: tuple[float, float]) -> list[float]:
    """Ascending values moved to lie `gap` (a share of the span) apart, within the span."""
    step = gap * (span[1] - span[0])
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + step) if places else value)
    ceiling = span[1]
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - step
    return places
