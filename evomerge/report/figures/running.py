"""The running of a campaign: failures, workers, pace and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import BLUE, COLORS, drawn_places, plot_layout, shown
from evomerge.report.tables import duration

STAGES = {"materialize": COLORS["parent"], "score": COLORS["winner"]}


def failures(reasons: Mapping[str | None, int]) -> go.Figure:
    """Draw how often trials failed for each reason, the most frequent on top.

    Args:
        reasons: `failures` of `Results.status`.
    """
    ranked = sorted(reasons.items(), key=lambda found: -found[1])
    figure = go.Figure(layout=plot_layout(height=44 * len(ranked) + 64, right=40, top=16))
    figure.add_bar(
        x=[count for _, count in ranked],
        y=list(range(len(ranked))),
        orientation="h",
        width=0.36,
        offset=0,
        marker={"color": COLORS["failed"]},
        text=[str(count) for _, count in ranked],
        textposition="outside",
        cliponaxis=False,
        hovertext=[shown(reason or "no reason recorded", 300) for reason, _ in ranked],
        hovertemplate="%{hovertext}: %{x}<extra></extra>",
        showlegend=False,
    )
    for place, (reason, _) in enumerate(ranked):
        figure.add_annotation(
            text=shown(reason or "no reason recorded", 46),
            x=0,
            y=place - 0.22,
            xanchor="left",
            showarrow=False,
            font={"size": 12},
        )
    figure.update_xaxes(title_text="trials", rangemode="tozero", tickformat="d", nticks=6)
    figure.update_yaxes(range=[len(ranked) - 0.4, -0.6], visible=False)
    return figure


def busy(running: Mapping[str, Any]) -> go.Figure:
    """Draw the number of workers at work, over running time.

    Args:
        running: `running_summary`, with something known of `busy`.
    """
    curve, sessions = running["busy"], running["sessions"]
    unit, name = _unit(running["time"])
    figure = go.Figure(layout=plot_layout(height=300, right=16, top=40))
    figure.add_scatter(
        x=[t / unit for t in curve["time"]],
        y=[*curve["workers"], curve["workers"][-1]],
        mode="lines",
        line={"color": COLORS["winner"], "shape": "hv", "width": 1.5},
        fill="tozeroy",
        fillcolor=BLUE,
        name="at work",
        hovertemplate="%{y:.2f} at work<extra></extra>",
    )
    starts = [session["time"] / unit for session in sessions]
    there = [session["workers"] for session in sessions]
    figure.add_scatter(
        x=[*starts, curve["time"][-1] / unit],
        y=[*there, there[-1]],
        mode="lines",
        line={"color": COLORS["baseline"], "dash": "dash", "shape": "hv", "width": 1.5},
        name="there are",
        hovertemplate="%{y} workers<extra></extra>",
    )
    _mark_sessions(figure, starts)
    figure.update_xaxes(title_text=f"running time, {name}", showgrid=False, rangemode="tozero")
    figure.update_yaxes(title_text="workers", range=[0, 1.12 * max(*there, *curve["workers"])])
    return figure


def pace(running: Mapping[str, Any]) -> go.Figure:
    """Draw trials (items, where these are the budget) over running time, on to the budget.

    Args:
        running: `running_summary`, with a trial at least.
    """
    of = "trials" if running["item_budget"] is None else "items"
    budget = running["budget"] if of == "trials" else running["item_budget"]
    time, count = running[of]["time"], running[of]["count"]
    left = running["left"] or 0.0
    unit, name = _unit(running["time"] + left)
    figure = go.Figure(layout=plot_layout(height=300, right=16, top=40))
    steps = drawn_places(len(time))
    figure.add_scatter(
        x=[0, *(time[place] / unit for place in steps)],
        y=[0, *(count[place] for place in steps)],
        mode="lines",
        line={"color": COLORS["winner"], "shape": "hv", "width": 2},
        name=f"{of} so far",
        hovertemplate=f"%{{y:,}} {of} after %{{x:.1f}} {name}<extra></extra>",
    )
    if left > 0:
        each = 1.0 if of == "trials" else count[-1] / len(count)
        reached = min(budget, count[-1] + running["rate"] * left * each)
        figure.add_scatter(
            x=[time[-1] / unit, (time[-1] + left) / unit],
            y=[count[-1], reached],
            mode="lines",
            line={"color": COLORS["winner"], "dash": "dot", "width": 2},
            name=f"at the latest pace: {duration(left)} left",
            hovertemplate="%{y:,.0f} expected<extra></extra>",
        )
    figure.add_scatter(
        x=[0, (time[-1] + left) / unit],
        y=[budget, budget],
        mode="lines",
        line={"color": COLORS["baseline"], "dash": "dash", "width": 1.5},
        name=f"budget, {budget:,}",
        hovertemplate="budget: %{y:,}<extra></extra>",
    )
    _mark_sessions(figure, [session["time"] / unit for session in running["sessions"]])
    figure.update_xaxes(title_text=f"running time, {name}", showgrid=False, rangemode="tozero")
    figure.update_yaxes(title_text=of, rangemode="tozero")
    return figure


def cost(running: Mapping[str, Any]) -> go.Figure:
    """Draw the workers' time by its purpose.

    Args:
        running: `running_summary`, with something in `cost`.
    """
    spent = running["cost"]
    unit, name = _unit(max(sum(stages.values()) for stages in spent.values()))
    figure = go.Figure(layout=plot_layout(height=34 * len(spent) + 110, right=16, top=40))
    for stage in dict.fromkeys(stage for stages in spent.values() for stage in stages):
        figure.add_bar(
            x=[stages.get(stage, 0.0) / unit for stages in spent.values()],
            y=list(spent),
            orientation="h",
            marker={"color": STAGES.get(stage, COLORS["baseline"])},
            name=shown(stage),
            hovertemplate=f"%{{y}}, {shown(stage)}: %{{x:.2f}} {name}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(title_text=f"one worker's {name}", rangemode="tozero", nticks=6)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _mark_sessions(figure: go.Figure, starts: list[float]) -> None:
    """Draw a line where the search was taken up again."""
    for start in starts[1:]:
        figure.add_vline(x=start, line={"color": COLORS["baseline"], "width": 1, "dash": "dot"})


def _unit(seconds: float) -> tuple[float, str]:
    """The unit of a duration: its length in seconds, and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
