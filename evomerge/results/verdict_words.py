"""The verdict as every view gives it, and its words: one sentence, notes, and what to do.

`verdict` finds out what is said here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evomerge.results.evidence import FEW, Judgement, Rival
from evomerge.results.written_numbers import difference, short

Kind = Literal["wins", "level", "loses"]

LISTED = 3
"""The most trials that are named in a sentence."""
HELP = (
    "More trials, other genes (finer groups, wider bounds, another method) or other experts may "
    "find one that does"
)


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
        preferred: the best parent on select, where neither the merge nor a default merge is better:
            that parent is the best found; None where another is.
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
    preferred: str | None = None
    stage: Mapping[str, Any] | None = None
    front: Mapping[str, Any] | None = None
    fallen: Sequence[Mapping[str, Any]] = ()
    excluded: Sequence[str] = ()
    text: str = ""
    notes: Sequence[str] = ()
    advice: str | None = None


@dataclass(frozen=True)
class Case:
    """Facts of a verdict that its words need.

    Attributes:
        ahead: of all parents on select.
        first: the parent that is first on select, default merges among the rest.
        alone: it keeps the constraints, and no parent does.
        outlaw: it breaks a constraint which the best parent keeps.
        better: the baseline that is first on select, before the parents too.
        other: the best parent on the split of the leads, where that is another one.
    """

    ahead: bool
    first: Rival | None = None
    alone: bool = False
    outlaw: bool = False
    better: Rival | None = None
    other: Rival | None = None


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


def sentence(found: Judgement, verdict: Verdict, case: Case) -> str:
    """Say how a merge compares with the best parent and the best baseline."""
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


def front_sentence(found: Judgement, verdict: Verdict) -> str:
    """Say how the front of several goals compares with the parents."""
    assert verdict.front is not None
    ahead, members = verdict.front["ahead"], verdict.front["members"]
    where = f"by means on {verdict.front['split']}"
    if not ahead:
        text = f"no merge beats the parents: each of the front's {members} is matched or "
        text += f"dominated by one, {where}"
    else:
        them = listed([str(number) for number in ahead])
        some = [f"`{name}`" for name, by in verdict.front["dominated"].items() if by]
        text = f"{len(ahead)} of the front's {members} merges (trial {them}) "
        text += f"{'beats' if len(ahead) == 1 else 'beat'} every parent in some goal, {where}, and "
        text += f"parents that one dominates are {listed(some)}" if some else "none dominates one"
    if verdict.lead:
        text += (
            f"; the preferred, {found.named}, in the preference's own number: "
            f"{difference(verdict.lead)} against `{verdict.parent}` on {found.split}"
        )
        if verdict.baseline_lead:
            text += f", {difference(verdict.baseline_lead)} against `{verdict.baseline}`"
    return _opened(found, verdict, f"{text}.")


def _on_baseline(verdict: Verdict, case: Case) -> str:
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


def with_notes(found: Judgement, verdict: Verdict, case: Case) -> Verdict:
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
        names, several = listed([f"`{one}`" for one in verdict.excluded]), verdict.excluded[1:]
        notes.append(
            f"{names} {'break' if several else 'breaks'} a constraint on {found.ruling}, and "
            f"{'are no rivals' if several else 'is no rival'}."
        )
    notes += _agreement(found)
    if found.items < FEW:
        notes.append(
            f"{found.items} item{'s' * (found.items != 1)} on {found.split}: too few to tell a "
            "lead from chance."
        )
    return replace(verdict, notes=notes, advice=_advice(found, verdict, case))


def _agreement(found: Judgement) -> list[str]:
    """Say what a lead is worth where tasks score agreement with experts."""
    evidence = found.evidence
    if not evidence.agreements:
        return []
    if one := evidence.capped:
        return [
            f"Agreement with `{one}` is all that counts, and `{one}` itself scores 1: no merge can "
            "beat it."
        ]
    own = [f"`{expert}` scores 1 on {task}" for task, expert in evidence.agreements.items()]
    return [
        f"Agreement with an expert is no accuracy: {listed(own)}, whatever is right, and no merge "
        "scores more there."
    ]


def _advice(found: Judgement, verdict: Verdict, case: Case) -> str | None:
    """Say what to do about a verdict that is no win; nothing before the end."""
    if not found.best or not verdict.final:
        return None
    if case.better is not None:
        return f"Export that merge with --trial {case.better.number}, or search on. {HELP}."
    if not verdict.beats and found.evidence.capped:
        return "To find a merge that is more than a copy, add prompts of another expert, or a task."
    if case.first is not None:
        return (
            f"The best found is `{case.first.name}` itself: keep it (--trial {case.first.number} "
            f"exports it). {HELP}."
        )
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


def _opened(found: Judgement, verdict: Verdict, text: str) -> str:
    """Begin a sentence: before the end with `Best so far`."""
    if found.best and not verdict.final:
        return f"Best so far: {text}"
    return begun(text)


def begun(text: str) -> str:
    """Return a sentence with a capital."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """List names; many are cut short."""
    shown = [*names[:LISTED], *([f"{len(names) - LISTED} more"] if len(names) > LISTED else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else ""
