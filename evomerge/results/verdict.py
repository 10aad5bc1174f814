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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from evomerge.judging import Judge, Judged, Scores, find_objective
from evomerge.judging.paired_tests import compare
from evomerge.results.written_numbers import difference, short
from evomerge.study.record import Evaluation

Kind = Literal["wins", "level", "loses"]

FEW = 20
"""The least number of items by which a lead may be called more than chance."""
NOTHING = 0.1
"""A task's mean has fallen to nearly nothing below this share of the best parent's."""
LISTED = 3
"""The most trials that are named in a sentence."""
HELP = (
    "More trials, other genes (finer groups, wider bounds, another method) or other experts may "
    "find one that does"
)


@dataclass(frozen=True)
class Rival:
    """What a merge must beat.

    Attributes:
        role: `parent` or `baseline`.
        name: of the model or default merge.
        digest: of its recipe.
        number: of a trial that holds it.
    """

    role: str
    name: str
    digest: str
    number: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What a study holds about a merge and its rivals.

    Attributes:
        judges: split → judge.
        measured: (digest, split) → the evaluation of all items.
        rivals: parents and baselines.
        lead: (digest, digest, split) → `difference`, `low`, `high` of the first minus the second.
        stage: name of the stage that the study is; None for a whole campaign.
        before: for each earlier stage `stage`, its name, and `select`, its winner's score.
        front: the front on search of an objective with several goals, the preferred first.
    """

    judges: Mapping[str, Judge]
    measured: Mapping[tuple[str, str], Evaluation]
    rivals: Sequence[Rival]
    lead: Callable[[str, str, str], Mapping[str, float]]
    stage: str | None = None
    before: Sequence[Mapping[str, Any]] = ()
    front: Sequence[Judged[Evaluation]] = ()

    def scores(self, digest: str, split: str) -> Scores | None:
        """Judge a recipe on a split; None where it was not measured."""
        found = self.measured.get((digest, split))
        return None if found is None else self.judges[split].scores(found.scores)

    def best(self, rivals: Sequence[Rival], split: str) -> Rival | None:
        """Find the best rival on a split; of equals, the earlier one."""
        found = [(self.scores(one.digest, split), one) for one in rivals]
        known = [(scores.fitness, one) for scores, one in found if scores]
        return max(known, key=lambda one: one[0])[1] if known else None


@dataclass(frozen=True)
class Verdict:
    """The one answer that every view gives.

    Attributes:
        kind: `wins`, `level` or `loses`, against the best parent.
        final: True once the campaign is over and test was opened; before, it is the best so far.
        beats: True if it leads the best parent, on select and on `split`; else no merge does.
        split: on which the leads are.
        items: number of items there.
        parent: the best parent, or the one that stands before it on select; None if none is known.
        lead: over that parent: `difference`, `low`, `high`.
        baseline: the best default merge; None if none is known.
        baseline_lead: over it.
        select: `merge`, `parent`, `score`: its own score on select, the best parent there, and that
            one's score; None where either is not measured.
        stage: the earlier stage whose winner stays the result, being no worse on select: `stage`,
            and `trial`, under which this study holds it, or null; None where there is none.
        front: of several goals: `split`, `members`, `ahead` (trials that no parent equals or
            dominates), `dominated` (parent → trials that dominate it).
        fallen: tasks on which it falls to nearly nothing: `task`, `merge`, `parent`, `score`.
        excluded: parents that break a constraint, which are no rivals.
        text: the verdict in a sentence.
        notes: further sentences.
        advice: what to do about it; None where there is nothing to say.
    """

    kind: Kind
    final: bool
    beats: bool
    split: str
    items: int
    parent: str | None = None
    lead: Mapping[str, float] | None = None
    baseline: str | None = None
    baseline_lead: Mapping[str, float] | None = None
    select: Mapping[str, Any] | None = None
    stage: Mapping[str, Any] | None = None
    front: Mapping[str, Any] | None = None
    fallen: Sequence[Mapping[str, Any]] = ()
    excluded: Sequence[str] = ()
    text: str = ""
    notes: Sequence[str] = ()
    advice: str | None = None


def leader_name(best: Mapping[str, Any]) -> str:
    """Name the recipe of a table of `Results.best`: `winner`, `best merge` or `best so far`."""
    verdict = best["verdict"]
    if verdict is None or not verdict["final"]:
        return "best so far"
    return "winner" if verdict["beats"] and not verdict["stage"] else "best merge"


def verdict_lines(verdict: Mapping[str, Any] | None) -> list[str]:
    """List a verdict's sentences: the verdict itself, its notes, its advice."""
    if verdict is None:
        return []
    advice = [verdict["advice"]] if verdict["advice"] else []
    return [verdict["text"], *verdict["notes"], *advice]


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
    found = _Found(evidence, trial, named, split, scores.n, best, concluded and split == "test")
    # 2. an earlier stage whose winner is no worse stays the result
    kept = _kept_stage(found) if best else None
    if kept is not None:
        return kept
    # 3. several goals are compared goal by goal, one goal by its lead
    return _front(found) if evidence.front and best else _one_goal(found)


@dataclass(frozen=True)
class _Found:
    """A merge under judgement, with what its sentences need."""

    evidence: Evidence
    trial: Evaluation
    named: str
    split: str
    items: int
    best: bool
    final: bool

    @property
    def stages(self) -> set[str]:
        """Names of the earlier stages, whose winners are models of this study."""
        return {str(one["stage"]) for one in self.evidence.before}

    @property
    def ruling(self) -> str:
        """The split on which constraints decide who is a rival: select, or search before."""
        return "select" if (self.trial.digest, "select") in self.evidence.measured else "search"

    def rivals(self, role: str) -> list[Rival]:
        """List what it must beat; earlier stages' winners are merges, and itself is no rival."""
        return [
            one
            for one in self.evidence.rivals
            if one.role == role
            and one.name not in self.stages
            and (self.trial.role, self.trial.name) != (one.role, one.name)
        ]

    def breaks(self, digest: str) -> bool:
        """Say whether a recipe breaks a constraint."""
        scores = self.evidence.scores(digest, self.ruling)
        return scores is not None and scores.violation > 0

    def lead(self, rival: Rival | None) -> Mapping[str, float] | None:
        """Give its lead over a rival on the split of the leads; None where one was not measured."""
        known = rival and (rival.digest, self.split) in self.evidence.measured
        if rival is None or not known:
            return None
        lead = self.evidence.lead(self.trial.digest, rival.digest, self.split)
        return {key: lead[key] for key in ("difference", "low", "high")}


@dataclass(frozen=True)
class _Case:
    """Facts of a verdict that its words need.

    Attributes:
        ahead: of all parents on select.
        alone: it keeps the constraints, and no parent does.
        outlaw: it breaks a constraint which the best parent keeps.
        better: the baseline that is first on select, before the parents too.
        other: the best parent on the split of the leads, where that is another one.
    """

    ahead: bool
    alone: bool = False
    outlaw: bool = False
    better: Rival | None = None
    other: Rival | None = None


def _one_goal(found: _Found) -> Verdict:
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
        and scores.fitness >= ours.fitness
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
    case = _Case(
        ahead=ahead,
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
        fallen=_fallen(found, parents),
        excluded=[one.name for one in excluded],
    )
    return _with_words(found, replace(verdict, text=_sentence(found, verdict, case)), case)


def _kind(found: _Found, lead: Mapping[str, float] | None, ahead: bool) -> Kind:
    """Say what a lead over a parent amounts to; `ahead` of all parents on select."""
    if lead is None or found.items < FEW:
        return "level"
    if lead["high"] < 0 or (not ahead and lead["difference"] < 0):
        return "loses"
    # search and select chose the merge: a lead there proves nothing
    return "wins" if ahead and lead["low"] > 0 and found.split == "test" else "level"


def _better_baseline(
    found: _Found,
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


def _kept_stage(found: _Found) -> Verdict | None:
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
            text=f"{_begun(behind)}.",
            advice=f"Export that stage: its folder, {name}, is a run of its own.",
        )
    other = _Found(evidence, stands, f"`{name}`", found.split, found.items, found.best, found.final)
    verdict = _one_goal(other)
    said = verdict.text.removeprefix("Best so far: ")
    return replace(
        verdict,
        stage={"stage": name, "trial": held.number},
        text=f"{_begun(behind)}; {said[:1].lower() + said[1:]}",
    )


def _front(found: _Found) -> Verdict:
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
    verdict = replace(one, kind=kind, beats=preferred, front=added)
    # 4. the words
    where = f"by means on {split}"
    if not ahead:
        text = f"no merge beats the parents: each of the front's {len(members)} is matched or "
        text += f"dominated by one, {where}"
    else:
        them = _listed([str(number) for number in ahead])
        some = [f"`{name}`" for name, by in dominated.items() if by]
        text = f"{len(ahead)} of the front's {len(members)} merges (trial {them}) "
        text += f"{'beats' if len(ahead) == 1 else 'beat'} every parent in some goal, {where}, and "
        text += f"parents that one dominates are {_listed(some)}" if some else "none dominates one"
    if verdict.lead:
        text += (
            f"; the preferred, {found.named}, in the preference's own number: "
            f"{difference(verdict.lead)} against `{verdict.parent}` on {found.split}"
        )
        if verdict.baseline_lead:
            text += f", {difference(verdict.baseline_lead)} against `{verdict.baseline}`"
    verdict = replace(verdict, text=_opened(found, verdict, f"{text}."))
    if ahead and not preferred:
        advice = f"{_begun(found.named)} is matched by a parent; export trial {them} instead."
        return replace(verdict, advice=advice)
    return _with_words(found, verdict, _Case(ahead=True))


def _fallen(found: _Found, parents: Sequence[Rival]) -> list[dict[str, Any]]:
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


def _sentence(found: _Found, verdict: Verdict, case: _Case) -> str:
    """Say it in a sentence."""
    merge, parent, lead, split = found.named, f"`{verdict.parent}`", verdict.lead, verdict.split
    chosen = verdict.select
    choice = f"{short(chosen['merge'])} to {short(chosen['score'])}" if chosen else ""
    no_merge = "no merge of the search" if case.better else "no merge"
    beaten = f"{no_merge} beats {parent}" + (" yet" if found.best and not verdict.final else "")
    if not found.best:
        beaten = f"{merge} does not beat {parent}"
    if lead is None and not case.ahead:
        text = f"{beaten} on select ({choice}); it was not measured on {split}"
    elif lead is None:
        text = f"{merge} has no parent to be compared with on {split}"
    elif case.outlaw:
        text = f"{beaten}: {merge} breaks a constraint that {parent} keeps; it is at "
        text += f"{difference(lead)} against it on {split}"
    elif case.alone:
        text = f"{merge} keeps the constraints, which no parent does; it is at {difference(lead)} "
        text += f"against the best of them, {parent}, on {split}"
    elif not case.ahead and lead["difference"] > 0:
        text = f"{beaten} on select, where the choice is made ({choice}), though {merge} leads it "
        text += f"by {difference(lead)} on {split}"
    elif not case.ahead or lead["difference"] <= 0:
        stands = "is behind it" if verdict.kind == "loses" else "is level with it"
        text = f"{beaten}: {merge} {stands}, {difference(lead)} on {split}"
        text += f", and {choice} on select" if chosen and not case.ahead else ""
    elif verdict.kind == "wins":
        text = f"{merge} beats the best parent, {parent}, by {difference(lead)} on {split}"
    elif split != "test":
        text = f"{merge} leads the best parent, {parent}, by {difference(lead)} on {split}, where "
        text += "it was chosen, which flatters it"
    else:
        text = f"{merge} is level with the best parent, {parent}: its lead of {difference(lead)} "
        text += f"on {split} may be chance"
    return _opened(found, verdict, f"{text}{_on_baseline(verdict, case)}.")


def _on_baseline(verdict: Verdict, case: _Case) -> str:
    """Say, as the end of a sentence, how the best baseline compares."""
    over, name = verdict.baseline_lead, f"`{verdict.baseline}`"
    if over is None:
        return ""
    if case.better is not None:
        return f"; but the default merge {name} is first on select: {difference(over)} against it"
    proved = over["low"] > 0 and verdict.items >= FEW and verdict.split == "test"
    if proved and verdict.beats:
        return f"; it beats the best baseline, {name}, by {difference(over)}"
    return f"; against the best baseline, {name}, {difference(over)}"


def _with_words(found: _Found, verdict: Verdict, case: _Case) -> Verdict:
    """Add notes and advice."""
    notes = [
        f"On {one['task']} it falls to {short(one['merge'])}, where `{one['parent']}` has "
        f"{short(one['score'])}."
        for one in verdict.fallen
    ]
    if case.other and (lead := found.lead(case.other)):
        notes.append(
            f"The best parent on {found.split} is another, `{case.other.name}`: it is at "
            f"{difference(lead)} against that one."
        )
    if verdict.excluded and not case.alone:
        names, several = _listed([f"`{one}`" for one in verdict.excluded]), verdict.excluded[1:]
        notes.append(
            f"{names} {'break' if several else 'breaks'} a constraint on {found.ruling}, and "
            f"{'are no rivals' if several else 'is no rival'}."
        )
    if found.items < FEW:
        notes.append(
            f"{found.items} item{'s' * (found.items != 1)} on {found.split}: too few to tell a "
            "lead from chance."
        )
    return replace(verdict, notes=notes, advice=_advice(found, verdict, case))


def _advice(found: _Found, verdict: Verdict, case: _Case) -> str | None:
    """Say what to do about a verdict that is no win; nothing before the end."""
    if not found.best or not verdict.final:
        return None
    if case.better is not None:
        return f"Export that merge with --trial {case.better.number}, or search on. {HELP}."
    if not verdict.beats:
        return f"{HELP}."
    lead = verdict.lead
    if verdict.kind != "level" or lead is None or lead["difference"] <= 0 or found.items < FEW:
        return None
    # the half-width of an interval falls with the square root of the number of items
    needed = found.items * ((lead["high"] - lead["low"]) / 2 / lead["difference"]) ** 2
    if needed <= found.items:
        return None
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    rounded = math.ceil(needed / digits) * digits
    return (
        f"To tell a lead of this size from chance takes about {rounded:,} items on test; there are "
        f"{found.items:,}."
    )


def _opened(found: _Found, verdict: Verdict, text: str) -> str:
    """Begin a sentence: before the end with `Best so far`."""
    if found.best and not verdict.final:
        return f"Best so far: {text}"
    return _begun(text)


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(names: Sequence[str]) -> str:
    """List names; many are cut short."""
    shown = [*names[:LISTED], *([f"{len(names) - LISTED} more"] if len(names) > LISTED else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else ""
