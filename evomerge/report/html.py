"""`evomerge report`: a study as one HTML page that needs nothing else, no network either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from evomerge.config import SPLITS
from evomerge.errors import InputError
from evomerge.report import figures
from evomerge.report.summary import (
    YARDSTICKS,
    best_summary,
    coefficient_summary,
    facts_summary,
    search_summary,
    searched_bounds,
    shown_split,
    status_summary,
    task_summary,
)
from evomerge.report.tables import (
    constraint_lines,
    difference,
    estimates_line,
    p_value,
    remarks,
    short,
    span,
    trials_line,
)
from evomerge.study.study import Study

TEMPLATE = "report.html.j2"


def write_report(study: Study, path: Path) -> None:
    """Write the page of a study that may still be running.

    Raises:
        InputError: no trial has succeeded yet, or the file cannot be written.
    """
    page = report_page(study)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from None


def report_page(study: Study) -> str:
    """The page as text.

    Raises:
        InputError: no trial has succeeded yet.
    """
    best, facts, status = best_summary(study), facts_summary(study), status_summary(study)
    split = shown_split(best)
    leader = "winner" if split == "test" else "best so far"
    rows = _rows(best, split, leader)
    scale = _scale(facts)
    tasks = task_summary(study, best, leader)
    coefficients = coefficient_summary(study, best["recipe"])
    on_search = {
        row: scores["mean"]
        for row, scores in _rows(best, "search", leader).items()
        if row[0] in YARDSTICKS
    }
    environment = page_environment()
    environment.filters.update(short=short, span=span, difference=difference, p_value=p_value)
    return environment.get_template(TEMPLATE).render(
        best=best,
        facts=facts,
        status=status,
        estimates_line=estimates_line,
        trials_line=trials_line,
        split=split,
        leader=leader,
        splits=SPLITS,
        bounds=searched_bounds(facts["weights"]),
        rows=rows,
        strongest=[_strongest(rows, role) for role in YARDSTICKS],
        yardsticks={"parent": best["parents"], "baseline": best["baselines"], "grid": best["grid"]},
        remarks=remarks(best),
        constraints=constraint_lines(best),
        tasks=tasks,
        recipe=json.dumps(best["recipe"], indent=2, ensure_ascii=False),
        plotly=get_plotlyjs(),
        figures={
            "scores": _plain(figures.forest(rows, scale)),
            "progress": _plain(
                figures.progress(search_summary(study), on_search, (best["trial"], leader), scale)
            ),
            "front": _plain(figures.front(best["front"], best["digest"], leader))
            if len((best.get("front") or [{"search": {}}])[0]["search"]) == 2
            else None,
            "tasks": {
                task: _plain(figures.forest(found["scores"], _metric(found), legend=False))
                for task, found in (tasks.items() if len(tasks) > 1 else ())
            },
            "coefficients": {
                name: _plain(figures.heat_map(name, table)) for name, table in coefficients.items()
            },
        },
    )


def page_environment() -> Environment:
    """The pages' templates; what they are given is escaped."""
    return Environment(
        loader=PackageLoader("evomerge.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _rows(best: Mapping[str, Any], split: str, leader: str) -> figures.Rows:
    """What was scored on a split: the winner, parents, baselines, the grid's best."""
    found = {
        ("winner", leader): best["scores"],
        **{("parent", name): scores for name, scores in best["parents"].items()},
        **{("baseline", name): scores for name, scores in best["baselines"].items()},
        **{("baseline", name): scores for name, scores in best["grid"].items()},
    }
    return {row: scores[split] for row, scores in found.items() if scores[split]}


def _strongest(rows: figures.Rows, role: str) -> str | None:
    """The name of the best of a role; the earlier of equals."""
    means = {name: scores["mean"] for (kind, name), scores in rows.items() if kind == role}
    return max(means, key=lambda name: means[name], default=None)


def _scale(facts: Mapping[str, Any]) -> str:
    """The objective as an axis title: `mean acc over 3 tasks`."""
    tasks = facts["tasks"]
    metrics = {task["metric"] for task in tasks}
    metric = f" {metrics.pop()}" if len(metrics) == 1 else ""
    count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
    negated = "" if all(task["higher_is_better"] for task in tasks) else ", losses negated"
    return f"{facts['objective']}{metric} over {count}{negated}"


def _metric(task: Mapping[str, Any]) -> str:
    return task["metric"] + ("" if task["higher_is_better"] else " (lower is better)")


def _plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON data."""
    return figure.to_plotly_json()
