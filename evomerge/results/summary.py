"""What a study says, as plain data: `status`, `best`, and what the report shows beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evomerge import __version__
from evomerge.common.errors import InputError
from evomerge.config import SPLITS, ConstraintConfig, ObjectiveConfig
from evomerge.judging.estimators.calibration import calibrate, switched_off_after
from evomerge.judging.intervals import compare, interval
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge, JudgedTask, Values, build_judge
from evomerge.judging.selection import Judged, best, by_preference
from evomerge.recipe import BASE
from evomerge.results.progress import is_concluded, running_summary, split_size
from evomerge.results.selection_bias import choice_summary, correct_for_many
from evomerge.study.judged import check_of, judge_on, judged, searched
from evomerge.study.record import Evaluation
from evomerge.study.study import Study

YARDSTICKS = ("parent", "baseline")
"""The roles of what the winner is measured against."""


def status_summary(study: Study, running: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How far the campaign is, as `evomerge status --json` prints it.

    `running`: the study's `running_summary`, where it has been made already.
    """
    evaluations = study.evaluations()
    trials = [e for e in evaluations if e.optimizers_own]
    failed = [t for t in trials if t.failed]
    pruned = [t for t in trials if t.estimated]
    whole = split_size(study, "search")
    leader = best(searched(judge_of(study), evaluations))
    stage = study.note("stage")
    running = running or running_summary(study)
    return {
        "name": study.name,
        "stage": stage and {key: stage[key] for key in ("name", "place", "of")},
        "trials": len(trials),
        "budget": study.campaign["budget"]["trials"],
        "item_budget": study.campaign["budget"].get("items"),
        "completed": len(trials) - len(failed) - len(pruned),
        "pruned": len(pruned),
        "failed": len(failed),
        "failures": dict(Counter(t.reason for t in failed)),
        "best": None
        if leader is None
        else {"trial": leader.trial.number, "value": leader.trial.value},
        "digests": [t.digest for t in trials],
        "items_asked": sum(t.cost(whole) for t in trials),
        "item_evaluations": sum(e.n for e in evaluations if e.seconds),
        "seconds": round(sum(sum(e.seconds.values()) for e in evaluations), 3),
        "in_flight": len(running["in_flight"]),
        "workers": running["workers"],
        "rate": running["rate"],
        "left": running["left"],
        "estimator": _calibration(study, trials),
        "events": study.note("events"),
        "optimizer_state": dict(trials[-1].state) if trials else {},
        "done": is_concluded(study) and (stage is None or stage["place"] == stage["of"]),
    }


def best_summary(study: Study) -> dict[str, Any]:
    """The winner against every parent and baseline, as `evomerge best --json` prints it.

    Before the campaign is done the best trial so far stands in, and its `test` is null.

    Raises:
        InputError: no trial has succeeded yet.
    """
    judge = judge_of(study)
    trials = searched(judge, study.evaluations())
    concluded = study.note("concluded") or {}
    ranked = by_preference(trials, judge.objective)
    chosen = best([t for t in trials if t.digest == concluded.get("winner")])
    leader = chosen or next(iter(ranked), None)
    if leader is None:
        raise InputError(
            f"study {study.name!r}: no trial has succeeded yet; `evomerge status` says how far it "
            "is and what failed"
        )
    summary = trial_summary(study, leader.trial)
    if chosen:
        summary["choice"] = choice_summary(judge, study.evaluations(), concluded)
    if judge.objective.goals is None:
        return summary
    feasible = [one for one in ranked if one.scores and one.scores.violation <= 0]
    return {**summary, "front": _front(study, feasible)}


def trial_summary(study: Study, trial: Evaluation) -> dict[str, Any]:
    """Any evaluation's recipe in the place of the winner, in the form of `best_summary`."""
    evaluations = study.evaluations()
    judge = judge_of(study)
    judges = {split: judge_on(judge, evaluations, split) for split in SPLITS}
    scored = {(e.digest, e.split): e for e in evaluations if e.measured}
    yardsticks = {
        role: {e.name or e.digest: e.digest for e in evaluations if e.role == role}
        for role in YARDSTICKS
    }
    grid = [e for e in evaluations if e.role == "grid" and e.split == "search"]
    leader = best(judged(judges["search"], grid))
    against = {
        "parents": yardsticks["parent"],
        "baselines": yardsticks["baseline"],
        "grid": {f"{leader.trial.name} (best of {len(grid)} on a grid)": leader.digest}
        if leader
        else {},
    }
    rows = {
        group: {name: _against(judges, trial.digest, d, scored) for name, d in found.items()}
        for group, found in against.items()
    }
    correct_for_many([row for found in rows.values() for row in found.values()])
    return {
        "trial": trial.number,
        "digest": trial.digest,
        "recipe": trial.recipe,
        "scores": _scores(judges, trial.digest, scored),
        **rows,
        "choice": None,
        "constraints": {
            split: _checks(judge, scored.get((trial.digest, split)))
            for split, judge in judges.items()
        },
        "test_sets": [
            task["task"]
            for task in study.note("tasks") or []
            if task.get("test_set") and task["weight"] > 0
        ],
        "test_opened": study.note("test_opened") or [],
        "stages": (study.note("stage") or {}).get("before", []),
    }


def shown_split(best: Mapping[str, Any]) -> str:
    """The split a `best_summary` is judged by: test once it is open, search before."""
    return "test" if best["scores"]["test"] else "search"


def search_summary(study: Study) -> list[dict[str, Any]]:
    """The optimizer's trials in the order of the record: number, value, standard error, whether
    the value is estimated, and the reason.

    A failed trial has a reason and neither value nor error.
    """
    return [
        {
            "trial": e.number,
            "value": e.value,
            "se": e.se,
            "estimated": e.estimated,
            "reason": e.reason,
        }
        for e in study.evaluations()
        if e.optimizers_own
    ]


def task_summary(
    study: Study, best: Mapping[str, Any], leader: str = "winner"
) -> dict[str, dict[str, Any]]:
    """Every task's own metric for the winner and every yardstick, on the split shown.

    Args:
        study: read from.
        best: its `best_summary`.
        leader: what the winner is called.

    Returns:
        task → `metric`, `higher_is_better`, `scores`: ("winner" | "parent" | "baseline", name) →
        mean with its interval, as measured (not weighted, no sign turned).
    """
    split = shown_split(best)
    found = [e for e in study.evaluations() if e.split == split and e.measured]
    scored = {
        ("winner", leader): next(e.scores for e in found if e.digest == best["digest"]),
        **{(e.role, e.name or e.digest): e.scores for e in found if e.role in YARDSTICKS},
    }
    mean = find_objective("mean", "report")
    return {
        task["task"]: {
            "metric": task["metric"],
            "higher_is_better": task["higher_is_better"],
            "scores": {
                row: _span(Judge(mean, [task["task"]], np.ones(1), np.ones(1)), items)
                for row, items in scored.items()
            },
        }
        for task in study.note("tasks") or []
    }


def facts_summary(study: Study) -> dict[str, Any]:
    """What the campaign is, and what it was run with, beside `status_summary`."""
    campaign, identity = study.campaign, study.identity
    evaluations = study.evaluations()
    specs = {BASE: campaign["models"]["base"], **campaign["models"]["experts"]}
    moments = [e.finished for e in evaluations if e.finished]
    return {
        "models": {
            name: {"source": specs[name], "digest": digest}
            for name, digest in identity["models"].items()
        },
        "weights": campaign["space"]["weights"],
        "path": campaign["space"]["path"],
        "genes": max((len(e.params) for e in evaluations), default=0),
        "optimizer": campaign["optimizer"],
        "objective": objective_label(campaign["fitness"]["objective"]),
        "select_top": campaign["fitness"]["select_top"],
        "seed": campaign["seed"],
        "tasks": study.note("tasks") or [],
        "items": {
            split: {task: len(ids) for task, ids in tasks.items()}
            for split, tasks in study.items().items()
        },
        "versions": {"evomerge": __version__, **(evaluations[-1].versions if evaluations else {})},
        "first": min(moments, default=None),
        "last": max(moments, default=None),
    }


def judge_of(study: Study) -> Judge:
    """The campaign's judge, from what the study says of its tasks; it knows no parents yet."""
    tasks = [
        JudgedTask(task["task"], task["weight"], task["higher_is_better"])
        for task in study.note("tasks") or []
    ]
    fitness = study.campaign["fitness"]
    objective = ObjectiveConfig.model_validate(fitness["objective"])
    constraints = [ConstraintConfig.model_validate(c) for c in fitness.get("constraints", [])]
    return build_judge(tasks, objective, constraints)


def objective_label(objective: str | Mapping[str, Any]) -> str:
    """The objective's name; its simple options in brackets: `weakest_link (temperature 0.05)`."""
    wanted = ObjectiveConfig.model_validate(objective)
    simple = [f"{k} {v}" for k, v in wanted.options.items() if isinstance(v, int | float | str)]
    return f"{wanted.kind} ({', '.join(simple)})" if simple else wanted.kind


def _calibration(study: Study, trials: Sequence[Evaluation]) -> dict[str, Any] | None:
    """How estimates on the lowest rung held on those that reached the top; null without rungs."""
    fitness = study.campaign["fitness"]
    if len(fitness.get("rungs", [])) < 2:
        return None
    checks = [check for check in map(check_of, trials) if check]
    found = calibrate(checks)
    return {
        "name": fitness["estimator"],
        "checked": found.of,
        "covered": found.covered,
        "error": found.error if found.of else None,
        "off_after": None if fitness["estimator"] == "mean" else switched_off_after(checks),
    }


def _front(study: Study, ranked: Sequence[Judged[Evaluation]]) -> list[dict[str, Any]]:
    """The trials of the front, the preferred first: goals as measured, on search and on select."""
    select = {e.digest: e for e in study.evaluations() if e.split == "select" and not e.failed}
    options = ObjectiveConfig.model_validate(study.campaign["fitness"]["objective"]).options
    goals = [goal if isinstance(goal, str) else goal["metric"] for goal in options["of"]]
    return [
        {
            "trial": one.trial.number,
            "digest": one.digest,
            "search": _goals(goals, one.trial),
            "select": _goals(goals, select.get(one.digest)),
        }
        for one in ranked
    ]


def _goals(goals: Sequence[str], trial: Evaluation | None) -> dict[str, float] | None:
    return None if trial is None else {goal: float(np.mean(trial.scores[goal])) for goal in goals}


def _checks(judge: Judge, trial: Evaluation | None) -> list[dict[str, Any]] | None:
    """Every constraint as measured on a split; null where the split was not opened."""
    if trial is None:
        return None
    return [{**asdict(c), "holds": c.violation <= 0} for c in judge.checks(trial.scores)]


def _scores(
    judges: Mapping[str, Judge], digest: str, scored: Mapping[tuple[str, str], Evaluation]
) -> dict[str, Any]:
    """split → mean with interval and task means; null where the split was not opened."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        evaluation = scored.get((digest, split))
        if evaluation is None:
            found[split] = None
            continue
        tasks = {
            task: {"mean": float(np.mean(values)), "n": len(values)}
            for task, values in evaluation.scores.items()
        }
        found[split] = {**_span(judges[split], evaluation.scores), "tasks": tasks}
    return found


def _span(judge: Judge, items: Mapping[str, Values]) -> dict[str, float]:
    span = interval(judge, items)
    return {"mean": span.value, "low": span.low, "high": span.high}


def _against(
    judges: Mapping[str, Judge],
    ours: str,
    theirs: str,
    scored: Mapping[tuple[str, str], Evaluation],
) -> dict[str, Any]:
    """A yardstick's scores, and by how much the winner beats it on each split, paired."""
    scores = _scores(judges, theirs, scored)
    for split in SPLITS:
        us, them = scored.get((ours, split)), scored.get((theirs, split))
        if us is not None and them is not None:
            paired = compare(judges[split], us.scores, them.scores)
            scores[split]["winner_minus_this"] = asdict(paired)
    return scores
