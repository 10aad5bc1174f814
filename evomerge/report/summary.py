"""`status` and `best` as plain data: everything read from the study, nothing computed anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from evomerge.config import SPLITS
from evomerge.errors import InputError
from evomerge.judging.intervals import compare, interval
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge
from evomerge.judging.selection import best
from evomerge.study.record import Evaluation
from evomerge.study.study import Study


def status_summary(study: Study) -> dict[str, Any]:
    """How far the campaign is, as `evomerge status --json` prints it."""
    evaluations = study.evaluations()
    trials = [e for e in evaluations if e.optimizers_own]
    failed = [t for t in trials if t.failed]
    leader = best(trials)
    opened = study.note("test_opened") or []
    done = bool(opened) and opened[-1]["trials"] == len(trials) and bool(study.note("winner"))
    return {
        "name": study.name,
        "trials": len(trials),
        "budget": study.campaign["budget"]["trials"],
        "completed": len(trials) - len(failed),
        "pruned": 0,
        "failed": len(failed),
        "failures": dict(Counter(t.reason for t in failed)),
        "best": None if leader is None else {"trial": leader.number, "value": leader.value},
        "digests": [t.digest for t in trials],
        "item_evaluations": sum(e.n for e in evaluations if e.seconds),
        "seconds": round(sum(sum(e.seconds.values()) for e in evaluations), 3),
        "done": done,
    }


def best_summary(study: Study) -> dict[str, Any]:
    """The winner against every parent and baseline, as `evomerge best --json` prints it.

    Before the campaign is done the best trial so far stands in, and its `test` is null.

    Raises:
        InputError: no trial has succeeded yet.
    """
    evaluations = study.evaluations()
    trials = [e for e in evaluations if e.optimizers_own]
    chosen = study.note("winner")
    leader = best([t for t in trials if chosen in (None, t.digest)]) or best(trials)
    if leader is None:
        raise InputError(f"study {study.name!r}: no trial has succeeded yet")
    judge = judge_of(study)
    scored = {(e.digest, e.split): e for e in evaluations if not e.failed}
    yardsticks = {
        role: {e.name or e.digest: e.digest for e in evaluations if e.role == role}
        for role in ("parent", "baseline")
    }
    return {
        "trial": leader.number,
        "digest": leader.digest,
        "recipe": leader.recipe,
        "scores": _scores(judge, leader.digest, scored),
        "parents": {
            name: _against(judge, leader.digest, digest, scored)
            for name, digest in yardsticks["parent"].items()
        },
        "baselines": {
            name: _against(judge, leader.digest, digest, scored)
            for name, digest in yardsticks["baseline"].items()
        },
        "test_opened": study.note("test_opened") or [],
    }


def judge_of(study: Study) -> Judge:
    """The campaign's judge, from what the study says of its tasks."""
    tasks = study.note("tasks") or []
    objective = study.campaign["fitness"]["objective"]
    return Judge(
        objective=find_objective(objective, "fitness.objective"),
        tasks=[task["task"] for task in tasks],
        weights=np.array([task["weight"] for task in tasks]),
        signs=np.array([1.0 if task["higher_is_better"] else -1.0 for task in tasks]),
    )


def _scores(
    judge: Judge, digest: str, scored: Mapping[tuple[str, str], Evaluation]
) -> dict[str, Any]:
    """split → mean with interval and task means; null where the split was not opened."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        evaluation = scored.get((digest, split))
        if evaluation is None:
            found[split] = None
            continue
        span = interval(judge, evaluation.scores)
        tasks = {
            task: {"mean": float(np.mean(values)), "n": len(values)}
            for task, values in evaluation.scores.items()
        }
        found[split] = {"mean": span.value, "low": span.low, "high": span.high, "tasks": tasks}
    return found


def _against(
    judge: Judge, ours: str, theirs: str, scored: Mapping[tuple[str, str], Evaluation]
) -> dict[str, Any]:
    """A yardstick's scores, and by how much the winner beats it on each split, paired."""
    scores = _scores(judge, theirs, scored)
    for split in SPLITS:
        us, them = scored.get((ours, split)), scored.get((theirs, split))
        if us is not None and them is not None:
            scores[split]["winner_minus_this"] = asdict(compare(judge, us.scores, them.scores))
    return scores
