"""The results of a study as plain data: `status`, `best`, and the tables beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from evomerge.common.errors import InputError
from evomerge.common.version import __version__
from evomerge.config import SPLITS, ConstraintConfig, ObjectiveConfig
from evomerge.judging import (
    Items,
    Judge,
    Judged,
    JudgedTask,
    best,
    build_judge,
    find_objective,
)
from evomerge.judging.estimators.calibration import calibrate, switched_off_after
from evomerge.judging.intervals import interval
from evomerge.judging.paired_tests import compare
from evomerge.recipe import BASE
from evomerge.results.audit import audit
from evomerge.results.composites import composites
from evomerge.results.descents import proposed_summary, shown_descent
from evomerge.results.evidence import Evidence, Rival
from evomerge.results.progress import (
    Clock,
    clock_of,
    is_concluded,
    pace_summary,
    running_summary,
    split_size,
    state_of,
)
from evomerge.results.routing_gap import routing_gap
from evomerge.results.selection_bias import choice_summary, correct_for_many
from evomerge.results.verdict import verdict_on
from evomerge.results.verdict_words import Verdict
from evomerge.study.judged import as_recorded, check_of, judge_on, judged, ranked
from evomerge.study.record import POLISHED, Evaluation
from evomerge.study.study import Study

REFERENCES = ("parent", "baseline")
"""The roles of what the winner is compared with."""


class Results:
    """A recorded study, loaded once and judged once.

    Of a study whose campaign goes on it holds what was recorded when it was made; make another one
    to see more.

    Attributes:
        study: the record.
        evaluations: every recorded evaluation, in trial order.
        own: the optimizer's own trials among them.
    """

    def __init__(self, study: Study) -> None:
        """Load the evaluations; judging waits until it is asked for."""
        self.study = study
        self.evaluations = study.evaluations()
        self.own = [e for e in self.evaluations if e.optimizers_own]
        self._leads: dict[tuple[str, str, str], dict[str, Any]] = {}

    @cached_property
    def task_notes(self) -> list[dict[str, Any]]:
        """The study's note on its tasks and measures: `task`, `metric`, `weight`, …"""
        return self.study.note("tasks") or []

    @cached_property
    def judge(self) -> Judge:
        """The campaign's judge, which knows no parents' items; see `judges`."""
        tasks = [
            JudgedTask(task["task"], task["weight"], task["higher_is_better"], "aggregate" in task)
            for task in self.task_notes
        ]
        fitness = self.study.campaign["fitness"]
        objective = ObjectiveConfig.model_validate(fitness["objective"])
        constraints = [ConstraintConfig.model_validate(c) for c in fitness.get("constraints", [])]
        return build_judge(tasks, objective, constraints)

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Split → its judge, which knows the parents' items on it as far as they are recorded."""
        return {split: judge_on(self.judge, self.evaluations, split) for split in SPLITS}

    @cached_property
    def searched(self) -> list[Judged[Evaluation]]:
        """The optimizer's own trials with their scores on search, in trial order."""
        return as_recorded(self.judges["search"], self.own)

    @cached_property
    def concluded(self) -> bool:
        """True once a winner was chosen, until another trial is recorded."""
        return is_concluded(self.study, self.evaluations)

    @cached_property
    def running(self) -> dict[str, Any]:
        """Cost, pace and utilisation; see `running_summary`."""
        return running_summary(self.study, self.evaluations, self._clock)

    @cached_property
    def _clock(self) -> Clock | None:
        """The running time of the record; None as long as nothing is recorded."""
        return clock_of(self.study, self.evaluations)

    def status(self) -> dict[str, Any]:
        """Say how far the campaign is, as `evomerge status --json` prints it.

        `verdict` is that of `best`; null as long as no trial succeeded. `state` is as `state_of`
        says.
        """
        failed = [t for t in self.own if t.failed]
        pruned = [t for t in self.own if t.estimated]
        whole = split_size(self.study, "search")
        pace = pace_summary(self.study, self.evaluations, self._clock)
        leader = best(self.searched)
        stage = self.study.note("stage")
        budget, descents = self.study.campaign["budget"], self.study.descents()
        asked = sum(t.cost(whole) for t in self.own) + sum(one.items for one in descents)
        items, proposed = budget.get("items"), proposed_summary(self.study, self.own)
        spent = len(self.own) >= budget["trials"] or (items is not None and asked >= items)
        return {
            "name": self.study.name,
            "state": state_of(self.study, self.evaluations, spent),
            "stage": stage and {key: stage[key] for key in ("name", "place", "of")},
            "trials": len(self.own),
            "budget": budget["trials"],
            "item_budget": items,
            "completed": len(self.own) - len(failed) - len(pruned),
            "pruned": len(pruned),
            "failed": len(failed),
            "failures": dict(Counter(t.reason for t in failed)),
            "best": None
            if leader is None
            else {
                "trial": leader.trial.number,
                "value": leader.trial.value,
                "tried": self._place(leader.trial),
            },
            "digests": [t.digest for t in self.own],
            "items_asked": asked,
            "item_evaluations": sum(e.n for e in self.evaluations if e.seconds),
            "seconds": round(sum(sum(e.seconds.values()) for e in self.evaluations), 3),
            "in_flight": len(pace["in_flight"]),
            "workers": pace["workers"],
            "rate": pace["rate"],
            "left": pace["left"],
            "estimator": self._calibration(),
            "events": self.study.note("events"),
            **({"merging": reuse} if (reuse := self.study.note("merging")) else {}),
            **({"polish": polish} if (polish := self._shown_polish()) else {}),
            **({"descents": list(map(shown_descent, descents))} if descents else {}),
            **({"proposed_descents": proposed} if proposed else {}),
            "optimizer_state": dict(self.own[-1].state) if self.own else {},
            "done": self.concluded and (stage is None or stage["place"] == stage["of"]),
            "verdict": self.verdict and asdict(self.verdict),
        }

    def best(self) -> dict[str, Any]:
        """Compare the winner with every parent and baseline, as `evomerge best --json` prints it.

        Before the campaign is done the best trial so far stands in, and its `test` is null.

        Raises:
            InputError: no trial has succeeded yet.
        """
        leader = self._leader
        if leader is None:
            raise InputError(
                f"study {self.study.name!r}: no trial has succeeded yet; `evomerge status` says "
                "how far it is and what failed"
            )
        table = self._table(leader.trial)
        concluded = self.study.note("concluded") or {}
        if leader.digest == concluded.get("winner"):
            table["choice"] = choice_summary(self.judges["select"], self.evaluations, concluded)
        table["verdict"] = self.verdict and asdict(self.verdict)
        if self.judge.objective.goals is None:
            return table
        return {**table, "front": self._front(self._feasible)}

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict on the winner, or before the end on the best so far; None without one."""
        if self._leader is None:
            return None
        return verdict_on(self._evidence, self._leader.trial, best=True, concluded=self.concluded)

    @cached_property
    def _ranked(self) -> list[Judged[Evaluation]]:
        """The search's recipes, the preferred first."""
        return ranked(self.judges["search"], self.searched, self.evaluations, "search")

    @cached_property
    def _feasible(self) -> list[Judged[Evaluation]]:
        """Those that keep all constraints."""
        return [one for one in self._ranked if one.scores and one.scores.violation <= 0]

    @cached_property
    def _leader(self) -> Judged[Evaluation] | None:
        """The winner, once it is chosen, or the preferred so far; None if no trial succeeded."""
        concluded = self.study.note("concluded") or {}
        ends = [e for e in self.evaluations if e.role == POLISHED and e.measured]
        known = [*self.searched, *judged(self.judges["search"], ends)]
        chosen = best([t for t in known if t.digest == concluded.get("winner")])
        return chosen or next(iter(self._ranked), None)

    @cached_property
    def _evidence(self) -> Evidence:
        """What verdicts rest on."""
        stage = self.study.note("stage") or {}
        named = [
            Rival("parent" if role == "parents" else "baseline", name, one.digest, one.number)
            for role, rivals in self._references.items()
            for name, one in rivals.items()
        ]
        counted = [task for task in self.task_notes if task["weight"] > 0]
        teachers = {task.get("agreement") for task in counted}
        return Evidence(
            judges=self.judges,
            measured=self._measured,
            rivals=named,
            lead=self._lead,
            stage=stage.get("name"),
            before=stage.get("before", []),
            front=self._feasible if self.judge.objective.goals is not None else [],
            agreements={t["task"]: t["agreement"] for t in counted if t.get("agreement")},
            capped=teachers.pop() if len(teachers) == 1 else None,
        )

    @cached_property
    def _references(self) -> dict[str, dict[str, Evaluation]]:
        """`parents`, `baselines`, and of a grid its best on search: name → an evaluation of it."""
        found = {
            role: {e.name or e.digest: e for e in self.evaluations if e.role == role}
            for role in REFERENCES
        }
        grid = [e for e in self.evaluations if e.role == "grid" and e.split == "search"]
        leader = best(judged(self.judges["search"], grid))
        return {
            "parents": found["parent"],
            "baselines": found["baseline"],
            "grid": {f"{leader.trial.name} (best of {len(grid)} on a grid)": leader.trial}
            if leader
            else {},
        }

    def trial(self, number: int) -> dict[str, Any]:
        """Compare a trial's recipe with every parent and baseline, in the form of `best`.

        `verdict` is on that recipe.

        Raises:
            InputError: the study has no trial of that number.
        """
        trial = self.evaluation(number)
        verdict = verdict_on(self._evidence, trial)
        return {**self._table(trial), "verdict": verdict and asdict(verdict)}

    def evaluation(self, number: int) -> Evaluation:
        """Find the evaluation that is recorded as the trial of a number.

        Raises:
            InputError: the study has no trial of that number.
        """
        found = next((e for e in self.evaluations if e.number == number), None)
        if found is None:
            raise InputError(f"trial {number}: study {self.study.name!r} has no such trial")
        return found

    def trials(self) -> list[dict[str, Any]]:
        """List the optimizer's trials in trial order.

        Returns:
            for each `trial` (its number), `value`, `se` (the standard error), `estimated` and
            `reason`; a failed trial has a reason and neither value nor error.
        """
        return [
            {
                "trial": e.number,
                "value": e.value,
                "se": e.se,
                "estimated": e.estimated,
                "reason": e.reason,
            }
            for e in self.own
        ]

    def tasks(self, best: Mapping[str, Any], leader: str = "winner") -> dict[str, dict[str, Any]]:
        """Compare winner, parents and baselines task by task, on the split that `best` is shown on.

        Args:
            best: a table of `best` or `trial`.
            leader: the name that stands for its recipe.

        Returns:
            task → `metric`, `higher_is_better`, `scores`: ("winner" | "parent" | "baseline", name)
            → mean with its interval, as measured (not weighted, no sign turned).
        """
        split = shown_split(best)
        found = [e for e in self.evaluations if e.split == split and e.measured]
        scored = {
            ("winner", leader): next(e.scores for e in found if e.digest == best["digest"]),
            **{(e.role, e.name or e.digest): e.scores for e in found if e.role in REFERENCES},
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
            for task in self.task_notes
        }

    def facts(self) -> dict[str, Any]:
        """Say what the campaign is, and what it was run with."""
        campaign, fitness = self.study.campaign, self.study.campaign["fitness"]
        specs = {BASE: campaign["models"]["base"], **campaign["models"]["experts"]}
        moments = [e.finished for e in self.evaluations if e.finished]
        versions = self.evaluations[-1].versions if self.evaluations else {}
        return {
            "models": {
                name: {"source": specs[name], "digest": digest}
                for name, digest in self.study.identity["models"].items()
            },
            "weights": campaign["space"]["weights"],
            "path": campaign["space"]["path"],
            "genes": self._genes,
            "optimizer": campaign["optimizer"],
            "objective": _objective_label(fitness["objective"]),
            "select_top": fitness["select_top"],
            "seed": campaign["seed"],
            "tasks": self.task_notes,
            "items": {
                split: {task: len(ids) for task, ids in tasks.items()}
                for split, tasks in self.study.items().items()
            },
            "versions": {"evomerge": __version__, **versions},
            "first": min(moments, default=None),
            "last": max(moments, default=None),
        }

    @property
    def _genes(self) -> int:
        """The most genes of any trial: of those with choices some do without a few."""
        latest = self.own[-1] if self.own else None
        genome = latest.genome if latest else None
        if latest is not None and genome is not None and len(latest.params) == len(genome):
            return len(genome)
        return max((len(e.params) for e in self.evaluations), default=0)

    @cached_property
    def _measured(self) -> dict[tuple[str, str], Evaluation]:
        """(digest, split) → the latest evaluation that was measured on all items."""
        return {(e.digest, e.split): e for e in self.evaluations if e.measured}

    def _table(self, trial: Evaluation) -> dict[str, Any]:
        """Any evaluation's recipe in the place of the winner, in the form of `best`."""
        rows = {
            group: {name: self._against(trial.digest, one.digest) for name, one in named.items()}
            for group, named in self._references.items()
        }
        correct_for_many([row for named in rows.values() for row in named.values()])
        return {
            "trial": trial.number,
            "tried": self._place(trial),
            **({"polished": origin} if (origin := self._origin(trial)) else {}),
            "digest": trial.digest,
            "recipe": trial.recipe,
            "scores": self._scores(trial.digest),
            **rows,
            "choice": None,
            "audit": audit(
                self.judge,
                self.evaluations,
                trial.digest,
                self.study.note("overlap"),
                self.study.note("audit") or (),
            ),
            "routing": routing_gap(self.judge, self.evaluations, trial.digest),
            "composites": self._composites(trial.digest),
            "constraints": {split: self._checks(trial.digest, split) for split in SPLITS},
            "test_sets": [
                task["task"]
                for task in self.task_notes
                if task.get("test_set") and task["weight"] > 0
            ],
            "test_opened": self.study.note("test_opened") or [],
            "stages": (self.study.note("stage") or {}).get("before", []),
        }

    def _composites(self, digest: str) -> list[dict[str, Any]]:
        """A recipe's composed tasks on test once it is open, else on search; see `composites`."""
        split = "test" if (digest, "test") in self._measured else "search"
        one = self._measured.get((digest, split))
        return [] if one is None else composites(self.task_notes, one.scores)

    def _origin(self, trial: Evaluation) -> dict[str, Any] | None:
        """Where a recipe's polish began: `from`, the trial, and its `search` and `select` scores;
        None of what is a trial itself, or no end of a polish.
        """
        end = next(
            (e for e in self.evaluations if (e.role, e.digest) == (POLISHED, trial.digest)), None
        )
        if end is None or self._place(trial):
            return None
        origin = next((e for e in self.own if e.ask in end.parents), None)
        if origin is None:
            return None
        scores = {split: self._scores(origin.digest)[split] for split in ("search", "select")}
        means = {split: found and found["mean"] for split, found in scores.items()}
        return {"from": origin.number, **means}

    def _shown_polish(self) -> list[dict[str, Any]]:
        """Show the finalists' descents, and whether their ends were accepted; None while open."""
        concluded = self.study.note("concluded") or {}
        asks, shown = {e.number: e.ask for e in self.own}, []
        for one in self.study.polished():
            ends = [
                e.digest
                for e in self.evaluations
                if e.role == POLISHED and asks.get(one.trial) in e.parents
            ]
            accepted = concluded.get("winner") in ends if self.concluded else None
            shown.append({**shown_descent(one.descent), "trial": one.trial, "accepted": accepted})
        return shown

    def _place(self, trial: Evaluation) -> list[int] | None:
        """Which of how many trials it is, from 1; None of what the search never tried.

        Optuna's numbers count parents, baselines and finalists too. Of another evaluation of a
        tried recipe: which trial had it first.
        """
        same = {e.number: place for place, e in enumerate(self.own, 1) if e.digest == trial.digest}
        place = same.get(trial.number, min(same.values(), default=None))
        return None if place is None else [place, len(self.own)]

    def _scores(self, digest: str) -> dict[str, Any]:
        """Split → mean with interval and task means; null where it was not measured."""
        found: dict[str, Any] = dict.fromkeys(SPLITS)
        for split in SPLITS:
            if evaluation := self._measured.get((digest, split)):
                tasks = {
                    task: {"mean": float(np.mean(values)), "n": len(values)}
                    for task, values in evaluation.scores.items()
                }
                found[split] = {**_span(self.judges[split], evaluation.scores), "tasks": tasks}
        return found

    def _against(self, ours: str, theirs: str) -> dict[str, Any]:
        """A parent's or baseline's scores, and by how much the winner beats it, paired."""
        scores = self._scores(theirs)
        for split in SPLITS:
            if (ours, split) in self._measured and (theirs, split) in self._measured:
                paired = dict(self._lead(ours, theirs, split))
                # on search and select it was chosen among many, which no p-value there counts
                paired["p"] = paired["p"] if split == "test" else None
                scores[split]["winner_minus_this"] = paired
        return scores

    def _lead(self, ours: str, theirs: str, split: str) -> Mapping[str, Any]:
        """One recipe minus another on a split where both were measured, as `Comparison` has it."""
        key = (ours, theirs, split)
        if key not in self._leads:
            us, them = self._measured[ours, split], self._measured[theirs, split]
            self._leads[key] = asdict(compare(self.judges[split], us.scores, them.scores))
        return self._leads[key]

    def _checks(self, digest: str, split: str) -> list[dict[str, Any]] | None:
        """Every constraint as measured on a split; null where it was not measured."""
        trial = self._measured.get((digest, split))
        if trial is None:
            return None
        checks = self.judges[split].checks(trial.scores)
        return [{**asdict(c), "holds": c.violation <= 0} for c in checks]

    def _front(self, ranked: Sequence[Judged[Evaluation]]) -> list[dict[str, Any]]:
        """The trials of the front, the preferred first: goals as measured, on every split."""
        objective = self.study.campaign["fitness"]["objective"]
        given = ObjectiveConfig.model_validate(objective).options["of"]
        goals = [goal if isinstance(goal, str) else goal["metric"] for goal in given]
        return [
            {
                "trial": one.trial.number,
                "digest": one.digest,
                "search": _goals(goals, one.trial),
                **{
                    split: _goals(goals, self._measured.get((one.digest, split)))
                    for split in ("select", "test")
                },
            }
            for one in ranked
        ]

    def _calibration(self) -> dict[str, Any] | None:
        """Compare estimates on the lowest rung with full scores; None without rungs."""
        fitness = self.study.campaign["fitness"]
        if len(fitness.get("rungs", [])) < 2:
            return None
        checks = [check for check in map(check_of, self.own) if check]
        found = calibrate(checks)
        return {
            "name": fitness["estimator"],
            "checked": found.of,
            "covered": found.covered,
            "error": found.error if found.of else None,
            "off_after": None if fitness["estimator"] == "mean" else switched_off_after(checks),
        }


def shown_split(best: Mapping[str, Any]) -> str:
    """The split by which a table of `Results.best` judges: test once it is open, else search."""
    return "test" if best["scores"]["test"] else "search"


def _objective_label(objective: str | Mapping[str, Any]) -> str:
    """The objective's name; its simple options in brackets: `weakest_link (temperature 0.05)`."""
    wanted = ObjectiveConfig.model_validate(objective)
    simple = [f"{k} {v}" for k, v in wanted.options.items() if isinstance(v, int | float | str)]
    return f"{wanted.kind} ({', '.join(simple)})" if simple else wanted.kind


def _goals(goals: Sequence[str], trial: Evaluation | None) -> dict[str, float] | None:
    return None if trial is None else {goal: float(np.mean(trial.scores[goal])) for goal in goals}


def _span(judge: Judge, items: Items) -> dict[str, float]:
    span = interval(judge, items)
    return {"mean": span.value, "low": span.low, "high": span.high}
