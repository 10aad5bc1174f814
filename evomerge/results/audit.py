"""Audit trust in the winner: which part of its gain cut-off and unreadable answers made, and more.

A parent that reasons longer than the token limit allows scores low for that alone, and a merge that
answers briefly seems to beat it. So the gain is counted again on the documents where neither was
cut off, and the part of it that came from the others is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.config import AUDIT
from evomerge.judging import AnswerFacts, Judge, find_objective
from evomerge.judging.paired_tests import compare
from evomerge.recipe import BASE
from evomerge.study.record import Evaluation

OFTEN = 0.05
"""Share of answers from which on being cut off, or not readable, is worth a word."""
PART = 0.1
"""Part of the gain from which on its coming from such answers is worth a word."""
NEAR = 0.01
"""Share of test documents with a near copy in search from which on that is worth a word."""


@dataclass(frozen=True)
class Audited:
    """What is compared: the winner and one parent, on the same items.

    Attributes:
        judge: of the weighted mean over tasks, whatever the campaign's objective is.
        ours: the winner's evaluation.
        theirs: the parent's.
    """

    judge: Judge
    ours: Evaluation
    theirs: Evaluation

    @property
    def gains(self) -> dict[str, np.ndarray]:
        """task → float64 [items]: what each item adds to the gain, which is the sum of all."""
        whole = float(self.judge.weights.sum())
        return {
            task: sign * weight / whole * _difference(self.ours, self.theirs, task)
            for task, weight, sign in self._tasks
        }

    @property
    def _tasks(self) -> Iterator[tuple[str, float, float]]:
        signs = np.broadcast_to(self.judge.signs, len(self.judge.tasks))
        return zip(self.judge.tasks, self.judge.weights, signs, strict=True)

    def either(self, fact: str) -> dict[str, np.ndarray]:
        """task → bool [items]: the fact holds of the winner's answer, or of the parent's."""
        return {
            task: _holds(self.ours, task, fact) | _holds(self.theirs, task, fact)
            for task in self.judge.tasks
        }

    def without(self, fact: str) -> dict[str, Any] | None:
        """Count the gain again on the items where the fact holds of neither answer.

        Returns:
            `items`: their number; `difference`, `low`, `high`: of the weighted mean over the tasks
            that have some. None if fewer than two are left.
        """
        kept = {task: ~found for task, found in self.either(fact).items()}
        parts = [part for part in self._tasks if kept[part[0]].any()]
        count = int(sum(kept[task].sum() for task, _, _ in parts))
        if count < 2:
            return None
        tasks, weights, signs = (list(column) for column in zip(*parts, strict=True))
        judge = Judge(self.judge.objective, tasks, np.array(weights), np.array(signs))
        ours, theirs = (
            {task: one.scores[task][kept[task]] for task in tasks}
            for one in (self.ours, self.theirs)
        )
        found = compare(judge, ours, theirs)
        return {
            "items": count,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
        }


def audit(
    judge: Judge,
    evaluations: Sequence[Evaluation],
    digest: str,
    overlap: Mapping[str, Any] | None = None,
    others: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any] | None:
    """Audit a recipe against every parent, on test once it is open there, else on select.

    Args:
        judge: of any split; its tasks, weights and signs are used.
        evaluations: all of the study.
        digest: of the recipe.
        overlap: the study's note on documents that search and test have in common.
        others: the study's note on the tasks of `fitness.audit`.

    Returns:
        `split`; `winner` and `parents` (name →), each task → shares `cut` and `unparsed` of its
        answers and their mean `tokens`, null where unknown; `gains`: parent → see `_gain`;
        `overlap`: as given; `forgetting`: see `_forgetting`; `verdict`: a line for people, null
        where there is nothing to object. None where it was measured on neither split, or no
        parent was.
    """
    there = latest_split(evaluations, digest)
    if there is None:
        return None
    split, ours, parents = there.split, there.ours, there.parents
    mean = mean_of(judge)
    gains = {name: _gain(Audited(mean, ours, theirs)) for name, theirs in parents.items()}
    found: dict[str, Any] = {
        "split": split,
        "winner": _answers(ours, mean.tasks),
        "parents": {name: _answers(one, mean.tasks) for name, one in parents.items()},
        "gains": gains,
        "overlap": overlap,
        "forgetting": _forgetting(evaluations, digest, others),
    }
    # The gain that counts is that over the best parent, which is the smallest.
    rival = min(gains, key=lambda name: gains[name]["difference"])
    lines = [
        *_gain_lines(rival, found),
        *_forgetting_lines(found["forgetting"]),
        *_overlap_lines(overlap),
    ]
    return {**found, "against": rival, "verdict": " ".join(lines) or None}


@dataclass(frozen=True)
class OnSplit:
    """A recipe and the parents that were measured on one split.

    Attributes:
        split: its name.
        ours: the recipe's evaluation.
        parents: name → a parent's evaluation; one at least.
    """

    split: str
    ours: Evaluation
    parents: Mapping[str, Evaluation]


def latest_split(evaluations: Sequence[Evaluation], digest: str) -> OnSplit | None:
    """Find a recipe and the parents on test once it is open, else on select; None on neither."""
    for split in ("test", "select"):
        on_split = [e for e in evaluations if e.split == split and e.measured]
        ours = next((e for e in on_split if e.digest == digest), None)
        parents = {e.name: e for e in on_split if e.role == "parent" and e.name}
        if ours is not None and parents:
            return OnSplit(split, ours, parents)
    return None


def _forgetting(
    evaluations: Sequence[Evaluation], digest: str, others: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Compare a recipe with every parent on each of the tasks that the search never used.

    Returns:
        task → `metric`, `higher_is_better`, `n`, `winner`: its mean, and `parents`: name → `mean`
        and the winner's `difference` with `low` and `high`, larger is better; empty where the
        recipe was not measured on them.
    """
    there = [e for e in evaluations if e.split == AUDIT and e.measured]
    ours = next((e for e in there if e.digest == digest), None)
    if ours is None:
        return {}
    parents = {e.name: e for e in there if e.role == "parent" and e.name}
    mean, found = find_objective("mean", "audit"), {}
    for task in others:
        name, sign = task["task"], 1.0 if task["higher_is_better"] else -1.0
        judge = Judge(mean, [name], np.ones(1), np.array([sign]))
        rows = {}
        for parent, theirs in parents.items():
            gap = compare(judge, ours.scores, theirs.scores)
            rows[parent] = {
                "mean": float(np.mean(theirs.scores[name])),
                "difference": gap.difference,
                "low": gap.low,
                "high": gap.high,
            }
        found[name] = {
            "metric": task["metric"],
            "higher_is_better": task["higher_is_better"],
            "n": len(ours.scores[name]),
            "winner": float(np.mean(ours.scores[name])),
            "parents": rows,
        }
    return found


def _forgetting_lines(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say on which tasks outside of the search the recipe is worse than the base, for certain."""
    for name, task in found.items():
        base = task["parents"].get(BASE)
        if base and base["high"] < 0:
            yield (
                f"It has forgotten some of {name}, which the search never used: "
                f"{task['winner']:.3f}, the base {base['mean']:.3f} (difference "
                f"{base['difference']:+.3f} [{base['low']:+.3f}, {base['high']:+.3f}])."
            )


def mean_of(judge: Judge) -> Judge:
    """Return the judge of the weighted mean over the tasks that count, without constraints."""
    counted = [i for i, weight in enumerate(judge.weights) if weight > 0]
    signs = np.broadcast_to(judge.signs, len(judge.tasks))
    tasks = [judge.tasks[i] for i in counted]
    mean = find_objective("mean", "audit")
    return Judge(mean, tasks, np.asarray(judge.weights)[counted], signs[counted])


def _gain(pair: Audited) -> dict[str, Any]:
    """The gain over one parent, where it comes from, and what it cost.

    Returns:
        `difference`: of weighted means; `cut`, `unparsed`: the part of the gain, up to 1, that
        comes from documents where either answer was cut off, or not cut off but not readable (null
        where there is no gain, or it is not known); `uncut`: see `Audited.without`; `tasks`:
        task → items `won`, `lost` and `alike`, and whether there is `enough` to tell: some item
        differs.
    """
    gains = pair.gains
    whole = float(sum(values.sum() for values in gains.values()))
    cut, unparsed = pair.either("cut"), pair.either("unparsed")
    only_unparsed = {task: unparsed[task] & ~cut[task] for task in cut}
    return {
        "difference": whole,
        "cut": _part(gains, cut, whole) if _knows(pair, "cut") else None,
        "unparsed": _part(gains, only_unparsed, whole) if _knows(pair, "unparsed") else None,
        "uncut": pair.without("cut") if _knows(pair, "cut") else None,
        "tasks": {
            task: {
                "won": int((values > 0).sum()),
                "lost": int((values < 0).sum()),
                "alike": int((values == 0).sum()),
                "enough": bool((values != 0).any()),
            }
            for task, values in gains.items()
        },
    }


def _part(
    gains: Mapping[str, np.ndarray], among: Mapping[str, np.ndarray], whole: float
) -> float | None:
    """The part of the gain that these items bring, between 0 and 1; None where there is none."""
    if whole <= 1e-12:
        return None
    there = float(sum(values[among[task]].sum() for task, values in gains.items()))
    return min(1.0, max(0.0, there / whole))


def _difference(ours: Evaluation, theirs: Evaluation, task: str) -> np.ndarray:
    """float64 [items]: the difference of the task's mean that each item makes."""
    a, b = np.asarray(ours.scores[task]), np.asarray(theirs.scores[task])
    return (a - b) / len(a)


def _holds(one: Evaluation, task: str, fact: str) -> np.ndarray:
    """bool [items]: the fact is known to hold of the answer."""
    facts = one.answers.get(task) or AnswerFacts.unknown(len(one.scores[task]))
    return getattr(facts, fact) == 1


def _knows(pair: Audited, fact: str) -> bool:
    """True if the fact is known of some answer of both."""
    return all(
        any(np.isfinite(getattr(facts, fact)).any() for facts in one.answers.values())
        for one in (pair.ours, pair.theirs)
    )


def _answers(one: Evaluation, tasks: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """task → shares and mean length of its answers, for tasks where something is known."""
    return {
        task: {
            "cut": _known_mean(facts.cut),
            "unparsed": _known_mean(facts.unparsed),
            "tokens": _known_mean(facts.tokens),
        }
        for task, facts in one.answers.items()
        if task in tasks
    }


def _known_mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _gain_lines(rival: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Say where the gain over the best parent comes from, if not from better answers."""
    gain = found["gains"][rival]
    # 1. the gain itself: is it one of answers that were cut off, or that no filter could read?
    for fact, cause, did in (
        ("cut", "truncation", "cut off at the token limit"),
        ("unparsed", "parsing", "of no form that the task's filter can read"),
    ):
        ours, theirs = (_largest(found["winner"], fact), _largest(found["parents"][rival], fact))
        if gain[fact] is None or gain[fact] < PART or theirs is None or ours is None:
            continue
        yield (
            f"{_portion(gain[fact])} of the gain is {cause} of the parent: of `{rival}`'s answers "
            f"to {theirs[0]}, {theirs[1]:.0%} were {did} (the merge's: {ours[1]:.0%})."
        )
    if gain["cut"] is not None and gain["cut"] >= PART:
        yield _again(gain["uncut"])
        return
    # 2. without a gain to explain, parents that had no room are said all the same
    cut = {name: _largest(answers, "cut") for name, answers in found["parents"].items()}
    over = {name: one for name, one in cut.items() if one is not None and one[1] > OFTEN}
    if over:
        listed = ", ".join(f"`{n}` {share:.0%} of {task}" for n, (task, share) in over.items())
        yield f"Answers were cut off at the token limit: {listed}; raise max_gen_toks."


def _portion(part: float) -> str:
    """Say a part in words: `all`, `most`, `half`, `a third`, else in percent."""
    for least, words in ((0.95, "All"), (0.6, f"Most ({part:.0%})"), (0.4, f"Half ({part:.0%})")):
        if part >= least:
            return words
    return f"{part:.0%}"


def _again(uncut: Mapping[str, Any] | None) -> str:
    if uncut is None:
        return "Not enough documents are left on which neither was cut off; raise max_gen_toks."
    return (
        f"On the {uncut['items']} documents where neither was cut off the lead is "
        f"{uncut['difference']:+.3f} [{uncut['low']:+.3f}, {uncut['high']:+.3f}]; raise "
        "max_gen_toks."
    )


def _largest(
    answers: Mapping[str, Mapping[str, float | None]], fact: str
) -> tuple[str, float] | None:
    """The task with the largest share, and the share; None where it is not known."""
    shares = [(task, one[fact]) for task, one in answers.items()]
    known = [(task, share) for task, share in shares if share is not None]
    return max(known, key=lambda one: one[1], default=None)


def _overlap_lines(overlap: Mapping[str, Any] | None) -> Iterator[str]:
    if overlap and overlap["near"] > NEAR * overlap["test"]:
        yield (
            f"{overlap['near']} of {overlap['test']} test documents are nearly those of the "
            f"search (for example {overlap['example']!r})."
        )


def audit_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the audit for a table: a row for each model and task.

    Returns:
        rows of `model`, `task`, `cut`, `unparsed`, `tokens` (null where unknown) and, for parents,
        `won`, `lost`, `alike` and `enough`: the winner's items against it.
    """
    models = {"winner": found["winner"], **found["parents"]}
    counted = {name: found["gains"][name]["tasks"] for name in found["gains"]}
    tasks = list(dict.fromkeys(task for tasks in counted.values() for task in tasks))
    unknown = dict.fromkeys(("cut", "unparsed", "tokens"))
    return [
        {
            "model": name,
            "task": task,
            **answers.get(task, unknown),
            **counted.get(name, {}).get(task, {}),
        }
        for name, answers in models.items()
        for task in tasks
    ]
