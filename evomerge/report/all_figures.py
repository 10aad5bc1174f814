"""Every figure of a study, named and explained, for report, dashboard and optuna-dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from evomerge.common.errors import InputError
from evomerge.report.figures import (
    ancestry,
    archive,
    coefficients,
    descents,
    progress,
    running,
    scores,
)
from evomerge.report.tables import front_rows, listed_once
from evomerge.results import REFERENCES, Results, shown_split
from evomerge.results.ancestry import ancestry_summary, path_summary
from evomerge.results.coefficients import (
    coefficient_summary,
    population_coefficients,
    searched_bounds,
)
from evomerge.results.descents import descent_curves, score_curve
from evomerge.results.population import (
    Population,
    grid_summary,
    item_summary,
    niche_summary,
    population_of,
    state_summary,
)
from evomerge.results.verdict_words import leader_name
from evomerge.study.study import Study


@dataclass(frozen=True)
class Figure:
    """One figure with the texts beside it.

    Attributes:
        id: valid as an HTML id, the same at every drawing.
        label: its subject, in a line.
        figure: plotly's.
        heading: above it, where its section has several; may be empty.
        note: beside the heading; may be empty.
    """

    id: str
    label: str
    figure: go.Figure
    heading: str = ""
    note: str = ""


@dataclass(frozen=True)
class StudyView:
    """Everything that a page about a study shows.

    Attributes:
        status: `Results.status`.
        facts: `Results.facts`.
        running: `Results.running`.
        best: `Results.best`; None as long as no trial succeeded.
        split: the split that the best is judged by.
        leader: the name of the best: "winner" or "best merge" at the end, "best so far" before.
        rows: scores on that split, see `figures.scores.forest`.
        population: its members.
        sections: name → its figures, none where there is nothing to draw.
    """

    status: Mapping[str, Any]
    facts: Mapping[str, Any]
    running: Mapping[str, Any]
    best: Mapping[str, Any] | None
    split: str
    leader: str
    rows: scores.Rows
    population: Population
    sections: Mapping[str, Sequence[Figure]]

    @property
    def figures(self) -> Iterator[Figure]:
        """All figures, in the order of the page."""
        return (figure for section in self.sections.values() for figure in section)


def view_of(study: Study) -> StudyView:
    """Draw everything that is to be seen of a study as it stands."""
    with study.still():
        return _view_of(Results(study))


def _view_of(results: Results) -> StudyView:
    try:
        best = results.best()
    except InputError:  # no trial has succeeded yet
        best = None
    split = shown_split(best) if best else "search"
    leader = leader_name(best) if best else "best so far"
    view = StudyView(
        status=results.status(),
        facts=results.facts(),
        running=results.running,
        best=best,
        split=split,
        leader=leader,
        rows=_rows(best, split, leader) if best else {},
        population=population_of(results),
        sections={},
    )
    sections = {name: list(draw(results, view)) for name, draw in _SECTIONS.items()}
    return replace(view, sections=sections)


def _scores(results: Results, view: StudyView) -> Iterator[Figure]:
    if view.best:
        figure = scores.forest(view.rows, _scale(view.facts))
        yield Figure("figure-scores", "Scores with intervals", figure)


def _front(results: Results, view: StudyView) -> Iterator[Figure]:
    points = (view.best or {}).get("front") or []
    if view.best and points:
        draw = scores.front if len(points[0]["search"]) == 2 else scores.front_lines
        figure = draw(front_rows(view.best), view.leader)
        yield Figure("figure-front", "The front of the goals", figure)


def _tasks(results: Results, view: StudyView) -> Iterator[Figure]:
    found = results.tasks(view.best, view.leader) if view.best else {}
    for place, (task, summary) in enumerate(found.items() if len(found) > 1 else (), 1):
        figure = scores.forest(summary["scores"], _metric(summary), legend=False)
        figure.update_xaxes(range=_shared_range(found.values(), summary["metric"]))
        yield Figure(
            f"figure-task-{place}",
            f"Scores on {task}",
            figure,
            heading=task,
            note=_count(view.facts["items"][view.split][task], "item"),
        )


def _shared_range(tasks: Iterable[Mapping[str, Any]], metric: str) -> list[float]:
    """Give the one range of the axes of all tasks with a metric, so that panels can be compared."""
    spans = [s for task in tasks if task["metric"] == metric for s in task["scores"].values()]
    low, high = min(s["low"] for s in spans), max(s["high"] for s in spans)
    pad = 0.06 * (high - low) or 0.05
    return [low - pad, high + pad]


def _search(results: Results, view: StudyView) -> Iterator[Figure]:
    if view.best:
        on_search = {
            row: found["mean"]
            for row, found in _rows(view.best, "search", view.leader).items()
            if row[0] in REFERENCES
        }
        polished = view.best.get("polished")
        marked = (
            (polished["from"], f"polished to the {view.leader}")
            if polished
            else (view.best["trial"], view.leader)
        )
        figure = progress.progress(results.trials(), on_search, marked, _scale(view.facts))
        yield Figure("figure-progress", "Best so far, trial by trial", figure)


def _descents(results: Results, view: StudyView) -> Iterator[Figure]:
    curves = descent_curves(results.study, results.own)
    if not curves:
        return
    trials = score_curve(results.study, results.own)
    yield Figure(
        "figure-descents",
        "Gradient descents: loss and score over items",
        descents.losses(curves, trials, _scale(view.facts)),
        heading="loss and score",
        note="above the loss, of documents held back where there are such, faint that of each "
        f"step's documents; below the trials' scores; {descents.POINT}",
    )
    # the way to the best trial's genes, or else of the latest descent
    number = view.best["trial"] if view.best else None
    followed = [one for one in curves if one["genes"]]
    shown = next((one for one in followed if number is not None and one["trial"] == number), None)
    if shown := shown or (followed[-1] if followed else None):
        names = results.study.identity["genes"]
        yield Figure(
            "figure-descent-genes",
            "Genes over the steps of a descent",
            descents.genes(shown, names),
            heading="genes",
            note=f"of the descent from {shown['from']}, at every look; {descents.POINT}",
        )


def _failures(results: Results, view: StudyView) -> Iterator[Figure]:
    if view.status["failures"]:
        figure = running.failures(view.status["failures"])
        yield Figure("figure-failures", "Failed trials by reason", figure)


def _archive(results: Results, view: StudyView) -> Iterator[Figure]:
    if series := state_summary(results):
        yield Figure(
            "figure-archive-state",
            "Coverage and entropy of the archive",
            archive.archive_state(series),
            heading="coverage and entropy",
            note="as the optimizer recorded them with every trial",
        )
    if grid := grid_summary(results):
        figure = archive.elites(grid)
        label = "Elites of the grid"
        yield Figure("figure-elites", label, figure, "elites", "the best of every cell, by score")
    if members := niche_summary(results, view.population):
        yield Figure(
            "figure-niches",
            "Niches: what falls to each member",
            archive.niches(members),
            heading="niches",
            note="an item's point is shared by those who solve it; together they solve "
            f"{sum(one['share'] for one in members):.1%}",
        )


def _matrix(results: Results, view: StudyView) -> Iterator[Figure]:
    if view.population.trials and view.best:
        found = item_summary(results, view.population, view.best["digest"])
        figure = archive.item_matrix(found)
        yield Figure("figure-items", "Who solves which item", figure)


def _flow(results: Results, view: StudyView) -> Iterator[Figure]:
    path = path_summary(results.study, view.best["recipe"]) if view.best else None
    if path:
        theirs = [path_summary(results.study, e.recipe) or [] for e in view.population.trials]
        ways = {tuple(slot["layer"] for slot in other): other for other in theirs if other}
        ways.pop(tuple(slot["layer"] for slot in path), None)
        figure = ancestry.data_flow(path, list(ways.values()))
        yield Figure("figure-flow", "The path through the models' layers", figure)


def _coefficients(results: Results, view: StudyView) -> Iterator[Figure]:
    if view.best is None:
        return
    bounds = searched_bounds(view.facts["weights"])
    found = coefficient_summary(results.study, view.best["recipe"])
    pooled = population_coefficients(results.study, [e.recipe for e in view.population.trials])
    who = f"{len(view.population.trials)} recipes"
    for place, (name, table) in enumerate(found.items(), 1):
        low, high = bounds[name]
        yield Figure(
            f"figure-coefficients-{place}",
            f"{name}, {view.leader}, by layer and expert",
            coefficients.heat_map(name, table),
            heading=f"{name}, {view.leader}",
            note=f"searched in {low:g} … {high:g}",
        )
        if len(view.population.trials) < 2 or name not in pooled:
            continue
        yield Figure(
            f"figure-population-{place}",
            f"{name}, mean of the population",
            coefficients.heat_map(name, pooled[name]),
            heading=f"{name}, population",
            note=f"mean of {who}",
        )
        spread = {**pooled[name], "values": pooled[name]["spread"], "bounds": [0, (high - low) / 2]}
        yield Figure(
            f"figure-spread-{place}",
            f"{name}, spread in the population",
            coefficients.heat_map(name, spread),
            heading=f"{name}, spread",
            note=f"standard deviation over {who}",
        )


def _lineage(results: Results, view: StudyView) -> Iterator[Figure]:
    family = ancestry_summary(results.study, view.best["trial"]) if view.best else None
    if family:
        figure = ancestry.family_tree(family, results.trials(), view.leader, _scale(view.facts))
        yield Figure("figure-lineage", "Parents and ancestors", figure)


def _running(results: Results, view: StudyView) -> Iterator[Figure]:
    found = view.running
    if found["trials"]["time"]:
        figure = running.pace(found)
        yield Figure("figure-pace", "Trials over time, and the time left", figure, "pace")
    if found["busy"] and found["busy"]["share"] is not None:
        share = f"{found['busy']['share']:.0%} of the workers' time was spent in evaluations"
        figure = running.busy(found)
        yield Figure("figure-busy", "Workers at work over time", figure, "workers at work", share)
    if found["cost"]:
        figure = running.cost(found)
        yield Figure("figure-cost", "The workers' time by purpose", figure, "cost")


_SECTIONS = {
    "scores": _scores,
    "front": _front,
    "tasks": _tasks,
    "search": _search,
    "descents": _descents,
    "failures": _failures,
    "archive": _archive,
    "matrix": _matrix,
    "flow": _flow,
    "coefficients": _coefficients,
    "lineage": _lineage,
    "running": _running,
}


def _rows(best: Mapping[str, Any], split: str, leader: str) -> scores.Rows:
    """Scores on a split: of the winner, parents, baselines, the grid's best."""
    found = {
        ("winner", leader): best["scores"],
        **{("parent", name): found for name, found in best["parents"].items()},
        **{("baseline", name): found for name, found in listed_once(best["baselines"]).items()},
        **{("baseline", name): found for name, found in best["grid"].items()},
    }
    return {row: found[split] for row, found in found.items() if found[split]}


def _scale(facts: Mapping[str, Any]) -> str:
    """The objective as an axis title: `mean acc over 3 tasks`."""
    tasks = facts["tasks"]
    metrics = {task["metric"] for task in tasks}
    metric = f" {metrics.pop()}" if len(metrics) == 1 else ""
    negated = "" if all(task["higher_is_better"] for task in tasks) else ", losses negated"
    return f"{facts['objective']}{metric} over {_count(len(tasks), 'task')}{negated}"


def _metric(task: Mapping[str, Any]) -> str:
    return task["metric"] + ("" if task["higher_is_better"] else " (lower is better)")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
