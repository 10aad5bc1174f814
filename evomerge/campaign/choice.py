"""The choice at the end of a search: finalists and winner, and the notes that tell of it.

Finalists are the best of the search; the winner is the finalist that does best on select; the test
split is opened for the winner alone, and never decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.campaign.candidate import Candidate, named
from evomerge.campaign.recorder import Recorder
from evomerge.common.errors import EvomergeError
from evomerge.fitness.tasks.overlap import near_copies
from evomerge.judging.selection import Judged, best, leading
from evomerge.results.progress import is_concluded
from evomerge.study.judged import as_recorded, judged, ranked
from evomerge.study.record import POLISHED, Evaluation


def finalists(record: Recorder) -> list[Judged[Evaluation]]:
    """Rank the trials by search, the preferred first; as many as `fitness.select_top` says."""
    return _ranked(record, record.trials, "search")[: record.setup.config.fitness.select_top]


def front_to_test(record: Recorder) -> list[Evaluation]:
    """Return the trials of the front on search that keep all constraints; none of one goal.

    None either of a campaign that is over: one from before fronts were tested stays as it is.
    """
    over = is_concluded(record.study, record.trials)
    if record.setup.judge.objective.goals is None or over:
        return []
    found = _ranked(record, record.trials, "search")
    return [one.trial for one in found if one.scores and one.scores.violation <= 0]


def _ranked(record: Recorder, trials: Sequence[Evaluation], split: str) -> list[Judged[Evaluation]]:
    """Rank recipes as measured on a split; of several goals the front, parents' equals last."""
    judge = record.judge(split)
    found = as_recorded(judge, trials) if split == "search" else judged(judge, trials)
    return ranked(judge, found, record.known.values(), split)


def choose_finalists(record: Recorder) -> list[Evaluation]:
    """Return the trials of `finalists`; there must be some.

    Raises:
        EvomergeError: there was no trial, or all failed.
    """
    if not record.trials:
        raise EvomergeError("the time was up before the first trial; run it again, for longer")
    found = [one.trial for one in finalists(record)]
    if not found:
        raise EvomergeError(f"no trial succeeded; the last failed: {record.trials[-1].reason}")
    return found


def rank_on_select(record: Recorder, among: Sequence[Evaluation]) -> list[Evaluation]:
    """Rank finalists by select, where all must have been measured, the winner first; of equals,
    the earlier one.

    Raises:
        EvomergeError: none could be scored there.
    """
    on_select = [record.known[trial.digest, "select"] for trial in among]
    found = _ranked(record, on_select, "select")
    if not found:
        raise EvomergeError(f"no finalist could be scored on select: {on_select[0].reason}")
    by_digest = {trial.digest: trial for trial in reversed(among)}
    return [by_digest[one.digest] for one in found]


def leaders(record: Recorder) -> list[Evaluation]:
    """Return every trial that was the best of the search at some time, once a recipe."""
    found = leading(as_recorded(record.judge("search"), record.trials))
    return list({one.digest: one.trial for one in found if one}.values())


def grid_on(split: str, record: Recorder) -> list[Candidate]:
    """Return the grid's merges; on later splits, the best of those that are no baseline."""
    grid = named(record.setup.grid, "grid", split)
    if split == "search":
        return grid
    known = [record.known[one.recipe.digest, "search"] for one in grid]
    leader = best(judged(record.judge("search"), [e for e in known if e.role == "grid"]))
    return [one for one in grid if leader and one.recipe.digest == leader.digest]


def note_test_opened(record: Recorder, winner: Evaluation) -> None:
    """Note, before it is opened, after how many trials and for whom the test split is opened."""
    opened = record.study.note("test_opened") or []
    entry = {"trials": len(record.trials), "winner": winner.digest}
    if entry not in opened:
        record.study.set_note("test_opened", [*opened, entry])


def note_overlap(record: Recorder) -> None:
    """Note how many test documents are copies, or near copies, of those searched on."""
    setup = record.setup
    texts: dict[str, list[str]] = {"search": [], "test": []}
    for task in setup.tasks:
        if task.weight > 0:
            text_of = dict(zip(task.ids, task.texts, strict=True))
            for split, found in texts.items():
                found += [text_of[item] for item in setup.items[split][task.task]]
    exact, near = near_copies(texts["search"], texts["test"])
    facts = {"test": len(texts["test"]), "exact": len(exact), "near": len(near)}
    example = {"example": texts["test"][near[0]][:60]} if near else {}
    record.study.set_note("overlap", facts | example)


def polished_of(record: Recorder, among: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the ends of finalists' polishes that were scored on search, in the order on record."""
    asks = {trial.ask for trial in among}
    return [
        one
        for one in record.study.evaluations()
        if one.role == POLISHED and one.measured and asks.issuperset(one.parents)
    ]


def note_concluded(record: Recorder, winner: Evaluation) -> None:
    """Note the winner, the finalists it was chosen from, and what the search had spent by then."""
    among = [one.trial for one in finalists(record)]
    polished = polished_of(record, among) if record.setup.config.polish else []
    facts = {
        "winner": winner.digest,
        "finalists": [one.digest for one in (*among, *polished)],
        "trials": len(record.trials),
        **({} if record.setup.config.budget.items is None else {"items": record.spent}),
    }
    record.study.set_note("concluded", facts)
