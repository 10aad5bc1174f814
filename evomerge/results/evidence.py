"""The evidence for a verdict: a merge, the parents and baselines it must beat, and its leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.judging import Judge, Judged, Scores
from evomerge.study.record import Evaluation

FEW = 20
"""The least number of items by which a lead may be called more than chance."""


@dataclass(frozen=True)
class Rival:
    """A parent or baseline that a merge must beat.

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
    """The scores that a study holds about a merge and its rivals.

    Attributes:
        judges: split → judge.
        measured: (digest, split) → the evaluation of all items.
        rivals: parents and baselines.
        lead: (digest, digest, split) → `difference`, `low`, `high` of the first minus the second.
        stage: name of the stage that the study is; None for a whole campaign.
        before: for each earlier stage `stage`, its name, and `select`, its winner's score.
        front: the front on search of an objective with several goals, the preferred first.
        agreements: task → the model with which it scores agreement, which scores 1 there.
        capped: the model that scores 1 on all tasks that count; None if none does.
    """

    judges: Mapping[str, Judge]
    measured: Mapping[tuple[str, str], Evaluation]
    rivals: Sequence[Rival]
    lead: Callable[[str, str, str], Mapping[str, float]]
    stage: str | None = None
    before: Sequence[Mapping[str, Any]] = ()
    front: Sequence[Judged[Evaluation]] = ()
    agreements: Mapping[str, str] = field(default_factory=dict)
    capped: str | None = None

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
class Judgement:
    """A merge under judgement.

    Attributes:
        evidence: of its study.
        trial: an evaluation of it.
        named: how sentences call it.
        split: on which its leads are.
        items: number of items there.
        best: it is the study's best, not any trial.
        final: the campaign is over, and test was opened.
    """

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
