"""The winner's selection bias, and the lines that explain its scores and p-values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.judging import Judge
from evomerge.judging.best_of_many import expected_on_new_items
from evomerge.judging.intervals import interval
from evomerge.judging.paired_tests import holm
from evomerge.study.judged import judged
from evomerge.study.record import Evaluation

NAMED = 3
"""The most tasks that are named."""


def choice_summary(
    judge: Judge, evaluations: Sequence[Evaluation], concluded: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Correct the winner's score on select for having been the best of some there.

    Args:
        judge: of the select split.
        concluded: the study's note on its winner.

    Returns:
        `finalists`: number of recipes it was chosen among; `select`: its score; `expected`: the
        score expected on new items of a winner chosen so, at most `select` (see `best_of_many`);
        `low`, `high`: the interval of `select`, lowered by as much. None before there is a winner,
        where it was not chosen by its score alone (but by a preference among goals, or for the
        smallest breach of a constraint), and where a task has a single item.
    """
    # 1. the finalists that keep all constraints, the winner among them
    named = concluded.get("finalists")  # None in older studies: all that were scored on select
    found = {
        e.digest: e
        for e in evaluations
        if (e.split, e.role) == ("select", "finalist") and (named is None or e.digest in named)
    }
    scored = [one for one in judged(judge, list(found.values())) if one.scores]
    rivals = [one for one in scored if one.scores and one.scores.violation <= 0]
    winner = next((one for one in rivals if one.digest == concluded.get("winner")), None)
    if winner is None or winner.value is None or judge.objective.ranking is not None:
        return None
    # 2. the bias: of a lone finalist there is none
    expected = expected_on_new_items(judge, [one.trial.scores for one in rivals])
    if expected is None:
        return None
    excess = max(0.0, winner.value - expected) if len(rivals) > 1 else 0.0
    around = interval(judge, winner.trial.scores)
    return {
        "finalists": len(rivals),
        "select": winner.value,
        "expected": winner.value - excess,
        "low": around.low - excess,
        "high": around.high - excess,
    }


def correct_for_many(rows: Sequence[Mapping[str, Any]]) -> None:
    """Add Holm-corrected p-values to the comparisons of each split, as `p_holm`.

    They are None where `p` is: on search and select, on which the winner was chosen.

    Args:
        rows: for each recipe that the winner is compared with, split → scores; written to.
    """
    for split in {split for row in rows for split in row}:
        found = [row[split]["winner_minus_this"] for row in rows if _compared(row[split])]
        p_values = [one["p"] for one in found if one["p"] is not None]
        corrected = holm(p_values) if p_values else [None] * len(found)
        for one, p in zip(found, corrected, strict=True):
            one["p_holm"] = p


def _compared(scores: Mapping[str, Any] | None) -> bool:
    return scores is not None and "winner_minus_this" in scores


def choice_line(choice: Mapping[str, Any], number: Callable[[float], str]) -> str:
    """Say a `choice_summary` in words; `number` formats a score."""
    if choice["finalists"] == 1:
        return "A single finalist was scored on select: nothing was chosen there."
    excess = choice["select"] - choice["expected"]
    return (
        f"Best of {choice['finalists']} on select: {number(choice['select'])} there is too high by "
        f"about {number(excess)} for that; on new documents {number(choice['expected'])} "
        f"[{number(choice['low'])}, {number(choice['high'])}] is expected (bootstrap bias "
        "correction of the choice). The test split had no part in the choice: its intervals need "
        "no correction."
    )


def tests_line(best: Mapping[str, Any], split: str) -> str:
    """Say which tests gave the p-values of a table of `Results.best`, or why there are none."""
    if split != "test":
        return f"no p-values: this trial was chosen on {split}, which flatters its lead there"
    rows = [
        row[split] for group in ("parents", "baselines", "grid") for row in best[group].values()
    ]
    found = [row["winner_minus_this"]["test"] for row in rows if _compared(row)]
    names = {
        "mcnemar": "McNemar's test (by Jeffreys' interval)",
        "t": "paired t test",
        "permutation": "permutation test",
        "combined": "paired test, stratified by task",
    }
    tests = " or ".join(names[test] for test in dict.fromkeys(found)) or "paired test"
    return (
        f"p: {tests}, two-sided, Holm-corrected for {len(found)} rows; intervals are of each row "
        "alone"
    )


def test_sets_line(tasks: Sequence[str]) -> str:
    """Say how scores compare with others' after a search on a part of public test sets."""
    named = ", ".join(tasks[:NAMED]) + (f" and {len(tasks) - NAMED} more" * (len(tasks) > NAMED))
    are = "is a public test set" if len(tasks) == 1 else "are public test sets"
    return (
        f"{named} {are}, and the search has seen a part: compare with others' scores by the test "
        "split alone, not by a run over all items."
    )
