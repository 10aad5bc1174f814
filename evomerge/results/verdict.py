"""The verdict on a search: whether its best merge beats the parents, by how much, and for certain.

The choice falls on select, and parents stand in it: a merge that is not strictly better there than
the best parent does not beat it. The lead and its interval are of the latest split on which the
merge was measured: test at the end, which chose nothing; select or search before, which flatter.

`kind` says what that amounts to. `wins`: first on select, and the whole interval of the lead on
test lies above 0. `loses`: the whole interval lies below 0, or the parent is ahead on both splits.
`level`: everything between, and whatever rests on fewer than `FEW` items. Of several goals the
members of the front are compared with the parents goal by goal (see `_front`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.judging import Judge, find_objective
from evomerge.judging.paired_tests import compare
from evomerge.results.evidence import FEW, Evidence, Judgement, Rival
from evomerge.results.verdict_words import (
    Case,
    Kind,
    Verdict,
    begun,
    front_sentence,
    listed,
    sentence,
    with_notes,
)
from evomerge.results.written_numbers import short
from evomerge.study.record import POLISHED, Evaluation

TIE = 1e-12
"""Means of as many right answers differ by less, since they are summed in another order."""
NOTHING = 0.1
"""A task's mean has fallen to nearly nothing below this share of the best parent's."""


def verdict_on(
    evidence: Evidence, trial: Evaluation, *, best: bool = False, concluded: bool = False
) -> Verdict | None:
    """Judge a merge against parents and baselines.

    Args:
        evidence: of its study.
        trial: an evaluation of the merge.
        best: it is the study's best, not any trial.
        concluded: the choice was made, and no trial was recorded since.

    Returns:
        None where it was not measured on all items of any split.
    """
    # 1. the split of the leads: the latest on which it was measured
    digest = trial.digest
    split = next((s for s in ("test", "select", "search") if (digest, s) in evidence.measured), "")
    if not split:
        return None
    scores = evidence.scores(digest, split)
    assert scores is not None
    named = f"`{trial.name}`" if trial.name else f"trial {trial.number}"
    if trial.role == POLISHED:
        named = f"trial {trial.number} (polished from {trial.name})"
    found = Judgement(evidence, trial, named, split, scores.n, best, concluded and split == "test")
    # 2. an earlier stage whose winner is no worse stays the result
    kept = _kept_stage(found) if best else None
    if kept is not None:
        return kept
    # 3. several goals are compared goal by goal, one goal by its lead
    return _front(found) if evidence.front and best else _one_goal(found)


def _one_goal(found: Judgement) -> Verdict:
    """Judge a merge by its lead over the best parent that stands in its way."""
    evidence, digest, split = found.evidence, found.trial.digest, found.split
    # 1. parents that break a constraint are no rivals of a merge that keeps all
    parents, broken = found.rivals("parent"), found.breaks(digest)
    excluded = [one for one in parents if found.breaks(one.digest)] if not broken else []
    rivals = [one for one in parents if one not in excluded]
    # 2. the choice on select (search before): a parent that is no worse there stands in the way
    ours = evidence.scores(digest, found.ruling)
    before = [
        one
        for one in rivals
        if ours
        and (scores := evidence.scores(one.digest, found.ruling))
        and scores.fitness >= ours.fitness - TIE
    ]
    ahead = not before
    # 3. the lead is over the best on `split` of those in the way, or of all if there are none
    there = evidence.best(rivals or parents, split)
    parent = (evidence.best(before, split) or before[0]) if before else there
    lead = found.lead(parent)
    beats = ahead and (not rivals or lead is None or lead["difference"] > 0)
    # 4. the best baseline, which takes its place if it is ahead on both splits
    baseline = evidence.best(found.rivals("baseline"), split)
    over = found.lead(baseline)
    # 5. what it comes to
    case = Case(
        ahead=ahead,
        first=_first_on_select(found, before),
        alone=bool(parents) and not rivals,
        outlaw=broken and any(not found.breaks(one.digest) for one in before),
        better=_better_baseline(found, baseline, over, rivals),
        other=None if there == parent else there,
    )
    chosen = None
    stands = evidence.best(rivals, "select") if ahead else parent
    theirs = evidence.scores(stands.digest, "select") if stands else None
    if ours and stands and theirs and found.ruling == "select":
        chosen = {"merge": ours.value, "parent": stands.name, "score": theirs.value}
    verdict = Verdict(
        kind="wins" if case.alone and found.split == "test" else _kind(found, lead, ahead),
        final=found.final and found.best,
        beats=beats and case.better is None,
        split=split,
        items=found.items,
        parent=parent.name if parent else None,
        lead=lead,
        baseline=baseline.name if baseline else None,
        baseline_lead=over,
        select=chosen,
        preferred=case.first.name if case.first else None,
        fallen=_fallen(found, parents),
        excluded=[one.name for one in excluded],
    )
    return with_notes(found, replace(verdict, text=sentence(found, verdict, case)), case)


def _kind(found: Judgement, lead: Mapping[str, float] | None, ahead: bool) -> Kind:
    """Say what a lead over a parent amounts to; `ahead` of all parents on select."""
    if lead is None or found.items < FEW:
        return "level"
    if lead["high"] < 0 or (not ahead and lead["difference"] < 0):
        return "loses"
    # search and select chose the merge: a lead there proves nothing
    return "wins" if ahead and lead["low"] > 0 and found.split == "test" else "level"


def _better_baseline(
    found: Judgement,
    baseline: Rival | None,
    over: Mapping[str, float] | None,
    rivals: Sequence[Rival],
) -> Rival | None:
    """Return the baseline if it is first on select, and no worse on the split of the leads."""
    theirs = found.evidence.scores(baseline.digest, "select") if baseline else None
    if theirs is None or over is None or over["difference"] > 0:
        return None
    others = [found.trial.digest, *(one.digest for one in rivals)]
    known = [scores for one in others if (scores := found.evidence.scores(one, "select"))]
    first = len(known) > 1 and all(theirs.fitness > scores.fitness for scores in known)
    return baseline if first else None


def _first_on_select(found: Judgement, before: Sequence[Rival]) -> Rival | None:
    """Return the best on select of the parents that stand in the way; None if a default merge is
    better, or select was not measured.
    """
    first = found.evidence.best(before, "select") if found.ruling == "select" else None
    if first is None:
        return None
    top = found.evidence.best([first, *found.rivals("baseline")], "select")
    return first if top == first else None


def _kept_stage(found: Judgement) -> Verdict | None:
    """Judge the earlier stage's winner that is no worse on select; None if none is."""
    evidence = found.evidence
    ours = evidence.scores(found.trial.digest, "select")
    if ours is None or not evidence.before:
        return None
    before = max(evidence.before, key=lambda one: one["select"])
    if ours.fitness > before["select"]:
        return None
    name = str(before["stage"])
    behind = (
        f"stage `{name}` stays the result: {found.named} of stage `{evidence.stage}` is no better "
        f"than it on select ({short(ours.value)} to {short(before['select'])})"
    )
    # a path's winner is no model of this study; a merge's is, and is judged in the other's place
    held = next((one for one in evidence.rivals if one.name == name), None)
    stands = evidence.measured.get((held.digest, found.split)) if held else None
    if held is None or stands is None:
        return Verdict(
            "loses",
            found.final,
            False,
            found.split,
            found.items,
            select={"merge": ours.value, "parent": name, "score": before["select"]},
            stage={"stage": name, "trial": None},
            text=f"{begun(behind)}.",
            advice=f"Export that stage: its folder, {name}, is a run of its own.",
        )
    other = Judgement(
        evidence, stands, f"`{name}`", found.split, found.items, found.best, found.final
    )
    verdict = _one_goal(other)
    said = verdict.text.removeprefix("Best so far: ")
    return replace(
        verdict,
        stage={"stage": name, "trial": held.number},
        text=f"{begun(behind)}; {said[:1].lower() + said[1:]}",
    )


def _front(found: Judgement) -> Verdict:
    """Compare the members of the front with the parents, goal by goal.

    A parent is no rival of the front where a member is nowhere worse and somewhere better, and a
    member adds nothing where a parent is nowhere worse. `wins`: every parent is dominated, and the
    preferred member's lead in the preference's own number is more than chance on test; `loses`: no
    member adds anything.
    """
    evidence = found.evidence
    # 1. the members' goals: on select, where all of them or some were measured, else on search
    on = "select" if any((m.digest, "select") in evidence.measured for m in evidence.front) else ""
    split = on or "search"
    members = {
        one.digest: (one.trial.number, np.array(scores.objectives))
        for one in evidence.front
        if (scores := evidence.scores(one.digest, split))
    }
    whole = found.rivals("parent")
    excluded = [one for one in whole if found.breaks(one.digest)]
    parents = {
        one.name: np.array(scores.objectives)
        for one in whole
        if one not in excluded and (scores := evidence.scores(one.digest, split))
    }
    # 2. who dominates whom
    ahead = [
        number
        for number, goals in members.values()
        if not any((theirs >= goals).all() for theirs in parents.values())
    ]
    dominated = {
        name: [
            number
            for number, goals in members.values()
            if (goals >= theirs).all() and (goals > theirs).any()
        ]
        for name, theirs in parents.items()
    }
    # 3. the preferred member's verdict, in the preference's number, is lowered by these
    one = _one_goal(found)
    preferred = found.trial.number in ahead or found.trial.digest not in members
    kind: Kind = "level"
    if not ahead and members:
        kind = "loses"
    elif one.kind == "wins" and all(dominated.values()) and preferred:
        kind = "wins"
    added = {
        "split": split,
        "members": len(members),
        "ahead": ahead,
        "dominated": dominated,
    }
    verdict = replace(one, kind=kind, beats=preferred, preferred=None, front=added)
    # 4. the words
    verdict = replace(verdict, text=front_sentence(found, verdict))
    if ahead and not preferred:
        them = listed([str(number) for number in ahead])
        advice = f"{begun(found.named)} is matched by a parent; export trial {them} instead."
        return replace(verdict, advice=advice)
    return with_notes(found, verdict, Case(ahead=True))


def _fallen(found: Judgement, parents: Sequence[Rival]) -> list[dict[str, Any]]:
    """List the tasks on which a merge falls to nearly nothing, where the best parent does not.

    Metrics from 0 to 1 only, of which more is better, and only where that is more than chance.
    """
    evidence, split = found.evidence, found.split
    judge, ours = evidence.judges[split], evidence.measured[found.trial.digest, split].scores
    known = {
        one.name: evidence.measured[one.digest, split].scores
        for one in parents
        if (one.digest, split) in evidence.measured
    }
    fallen = []
    for task, sign in zip(judge.tasks, np.broadcast_to(judge.signs, len(judge.tasks)), strict=True):
        values = [ours[task], *(items[task] for items in known.values())]
        if sign < 0 or not known or any(v.min() < 0 or v.max() > 1 for v in values):
            continue
        name = max(known, key=lambda one: float(known[one][task].mean()))
        mean, best = float(ours[task].mean()), float(known[name][task].mean())
        alone = Judge(find_objective("mean", "verdict"), [task], np.ones(1), np.ones(1))
        if mean <= NOTHING * best and compare(alone, ours, known[name]).high < 0:
            fallen.append({"task": task, "merge": mean, "parent": name, "score": best})
    return fallen
