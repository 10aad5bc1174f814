"""The search, trial by trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import (
    COLORS,
    DASHES,
    DRAWN,
    ESTIMATED,
    ONLY_NARROW,
    drawn_places,
    plot_layout,
    shown,
    star,
)
from evomerge.results.written_numbers import short

BAND = "rgba(47, 127, 193, 0.22)"
NORMAL_95 = 1.96

Trial = Mapping[str, Any]
"""An entry of `Results.trials`."""
References = Mapping[tuple[str, str], float]
"""("parent" | "baseline", name) → value."""


def progress(
    trials: Sequence[Trial], references: References, marked: tuple[int, str], scale: str
) -> go.Figure:
    """Draw search scores, trial by trial, with the running best and its 95 % interval.

    Args:
        trials: `Results.trials`; at least one was measured on all items.
        references: drawn as horizontal lines.
        marked: number and name ("winner") of the trial to mark.
        scale: the axis title.
    """
    figure = go.Figure(layout=plot_layout(height=440, right=210))
    ends = [trials[0]["trial"] - 0.5, trials[-1]["trial"] + 0.5]
    done = [t for t in trials if t["value"] is not None and not t["estimated"]]
    estimated = [t for t in trials if t["estimated"]]
    reached = list(accumulate(done, _better))
    steps = _steps(reached)  # the curves of the best so far hold between these
    at = [done[place]["trial"] for place in steps] + ends[1:]
    best = [reached[place] for place in steps] + reached[-1:]
    band = _band(at, best)
    figure.add_traces([*band, *_pruned(estimated), _points(done, steps)])
    for (role, name), value in references.items():
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
        x=at,
        y=[t["value"] for t in best],
        mode="lines",
        line={"color": COLORS["winner"], "shape": "hv", "width": 2},
        name="best so far",
        hovertemplate="best so far: %{y:.4f}<extra></extra>",
    )
    number, label = marked
    figure.add_trace(star(number, [t["value"] for t in done if t["trial"] == number], label))
    values = [*references.values(), *(t["value"] for t in done + estimated), *band[0].y, *band[1].y]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05
    figure.add_traces(_failures(trials, low - pad))
    _label_lines(figure, references, (low - 1.8 * pad, high + 1.8 * pad))
    figure.update_xaxes(
        title_text="trial (its number in the study)",
        range=ends,
        dtick=1 if ends[1] - ends[0] <= 10 else None,
        showgrid=False,
    )
    figure.update_yaxes(title_text=shown(scale, 60), range=[low - 1.8 * pad, high + 1.8 * pad])
    return figure


def _better(one: Trial, other: Trial) -> Trial:
    return other if other["value"] > one["value"] else one


def _steps(reached: Sequence[Trial]) -> list[int]:
    """Places where the best so far changes, if there are many trials; else all."""
    if len(reached) <= DRAWN:
        return list(range(len(reached)))
    changed = (p for p in range(1, len(reached)) if reached[p] is not reached[p - 1])
    return [0, *changed]


def _points(done: Sequence[Trial], also: Sequence[int] = ()) -> go.Scatter:
    """Points of trials; of many, some, and those at the places `also`."""
    shown = [done[place] for place in sorted({*drawn_places(len(done)), *also})]
    some = f" ({len(shown):,} of {len(done):,})" if len(shown) < len(done) else ""
    return go.Scatter(
        x=[t["trial"] for t in shown],
        y=[t["value"] for t in shown],
        mode="markers",
        marker={"color": COLORS["winner"], "opacity": 0.75, "size": 7},
        name=f"trial{some}",
        hovertemplate="trial %{x}: %{y:.4f}<extra></extra>",
    )


def _pruned(estimated: Sequence[Trial]) -> list[go.Scatter]:
    """Trials pruned at a rung, at their estimates, as rings."""
    if not estimated:
        return []
    points = _points(estimated)
    points.update(
        marker={"color": COLORS["winner"], "symbol": ESTIMATED, "opacity": 0.6, "size": 6},
        name=f"pruned at a rung, estimated ({len(estimated)})",
        hovertemplate="trial %{x}: estimated %{y:.4f}<extra></extra>",
    )
    return [points]


def _band(x: Sequence[float], best: Sequence[Trial]) -> list[go.Scatter]:
    """The running best ± 1.96 standard errors: the lower edge, and the upper filled down to it."""
    edges = [[t["value"] + side * NORMAL_95 * (t["se"] or 0.0) for t in best] for side in (-1, 1)]
    line = {"width": 0, "shape": "hv", "color": COLORS["winner"]}
    lower, upper = (
        go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        for y in edges
    )
    upper.update(fill="tonexty", fillcolor=BAND, name="its 95 % interval", showlegend=True)
    return [lower, upper]


def _failures(trials: Sequence[Trial], height: float) -> list[go.Scatter]:
    """Failed trials as crosses under the scores."""
    every = [t for t in trials if t["value"] is None]
    failed = [every[place] for place in drawn_places(len(every))]
    if not failed:
        return []
    return [
        go.Scatter(
            x=[t["trial"] for t in failed],
            y=[height] * len(failed),
            mode="markers",
            marker={"color": COLORS["failed"], "symbol": "x", "size": 8},
            name=f"failed ({len(every)})",
            customdata=[shown(t["reason"] or "no reason recorded", 80) for t in failed],
            hovertemplate="trial %{x} failed: %{customdata}<extra></extra>",
        )
    ]


def _label_lines(
    figure: go.Figure, references: References, span: tuple[float, float], plot_height: int = 330
) -> None:
    """Name the lines at the right edge; labels that would overlap move apart, tied by a stroke."""
    ordered = sorted(references, key=lambda row: references[row])
    places = _apart([references[row] for row in ordered], 16 / plot_height, span)
    for row, place in zip(ordered, places, strict=True):
        value = references[row]
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
            name="beside",
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
