"""The comparison's figure: for the page by plotly, as a PNG by matplotlib.

Plotly writes image files through a browser only (kaleido needs Chrome); servers have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from evomerge.report.figures.style import PALETTE, plot_layout, shown
from evomerge.results.written_numbers import short

DASHES = ("solid", "dash", "dot", "dashdot")
STROKES: dict[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
BEYOND = 1.02
"""Factor of the budget up to which lines go on, so that its last step can be seen."""
QUIET = "#7d8590"
"""The colour of the best parent and the best baseline."""


@dataclass(frozen=True)
class Line:
    """One optimizer's median and quartiles as steps, up to the end of the budget."""

    label: str
    color: str
    dash: str
    spent: list[float]
    low: list[float]
    median: list[float]
    high: list[float]


def lines(comparison: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the lines of `compare_optimizers`' result; optimizers without a score have none."""
    curves = {label: found["curve"] for label, found in comparison["optimizers"].items()}
    end = BEYOND * max((x for found in curves.values() for x in found["spent"]), default=1.0)
    for place, (label, found) in enumerate(curves.items()):
        if found["spent"]:
            color, dash = PALETTE[place % len(PALETTE)], DASHES[place % len(DASHES)]
            bands = {key: [*values, values[-1]] for key, values in found.items()}
            yield Line(label, color, dash, **bands | {"spent": [*found["spent"], end]})


def references(comparison: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name the best parent and the best baseline on select, with their scores."""
    best = []
    for role, found in comparison["yardsticks"].items():
        if found:
            name = max(found, key=lambda name: found[name])
            best.append((f"best {role}: {name} {short(found[name])}", found[name]))
    return best


def interactive(comparison: Mapping[str, Any]) -> go.Figure:
    """Draw best so far on select against item evaluations: medians, bands between quartiles."""
    figure = go.Figure(layout=plot_layout(height=460, right=16, top=24))
    drawn = list(lines(comparison))
    for line in drawn:
        steps = {"width": 0, "shape": "hv", "color": line.color}
        for y, fill in ((line.low, None), (line.high, "tonexty")):
            figure.add_scatter(
                x=line.spent,
                y=y,
                mode="lines",
                line=steps,
                fill=fill,
                fillcolor=_translucent(line.color),
                hoverinfo="skip",
                showlegend=False,
                legendgroup=line.label,
            )
    for line in drawn:
        figure.add_scatter(
            x=line.spent,
            y=line.median,
            mode="lines",
            line={"width": 2.5, "shape": "hv", "color": line.color, "dash": line.dash},
            name=shown(line.label, 48),
            legendgroup=line.label,
            hovertemplate=f"{shown(line.label)}, %{{x:,}} items: %{{y:.4f}}<extra></extra>",
        )
    end = max((line.spent[-1] for line in drawn), default=1.0)
    for place, (name, score) in enumerate(references(comparison)):
        figure.add_scatter(
            x=[0, end],
            y=[score, score],
            mode="lines",
            line={"width": 1.2, "color": QUIET, "dash": ("dot", "longdash")[place]},
            name=shown(name, 60),
            hovertemplate=f"{shown(name, 99)}<extra></extra>",
        )
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin={"b": 120})
    figure.update_xaxes(title_text="item evaluations on search", range=[0, end])
    figure.update_yaxes(title_text=f"on select: {shown(comparison['objective'], 50)}")
    return figure


def save_picture(comparison: Mapping[str, Any], path: Path) -> None:
    """Write the same figure as a PNG of 1500 × 900 pixels.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    drawn = list(lines(comparison))
    for line in drawn:
        axes.fill_between(
            line.spent, line.low, line.high, step="post", color=line.color, alpha=0.15, linewidth=0
        )
    for line in drawn:
        axes.step(
            line.spent,
            line.median,
            where="post",
            color=line.color,
            linestyle=STROKES[line.dash],
            linewidth=2,
            label=_plain(line.label),
        )
    for place, (name, score) in enumerate(references(comparison)):
        stroke = (":", (0, (8, 4)))[place]
        axes.axhline(score, color=QUIET, linestyle=stroke, linewidth=1.2, label=_plain(name))
    axes.set_xlim(0, max((line.spent[-1] for line in drawn), default=1.0))
    axes.set_xlabel("item evaluations on search")
    axes.set_ylabel(f"on select: {_plain(comparison['objective'])}")
    axes.set_title(title(comparison), fontsize=11, loc="left")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(color="#e7eaee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for columns in (3, 2, 1):
        legend = figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    figure.savefig(path)


def title(comparison: Mapping[str, Any]) -> str:
    """Say in one line what the figure shows."""
    seeds = len(comparison["seeds"])
    over = "one seed" if seeds == 1 else f"median and quartiles of {seeds} seeds"
    return f"{comparison['campaign']}: best by search so far, scored on select; {over}"


def _plain(text: str) -> str:
    """Escape text for matplotlib, which takes `$` for maths."""
    return text.replace("$", r"\$")


def _translucent(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.15)"
