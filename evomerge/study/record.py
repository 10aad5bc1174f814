"""Evaluations, which the study records, and markers of those still in flight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np

from evomerge.judging.answer_facts import AnswerFacts

POLISHED = "polished"
"""The role of the end of a polish on the search split: no trial of the optimizer's."""


@dataclass(frozen=True)
class RungResult:
    """Estimate of a candidate's score, made on a rung below the last.

    Attributes:
        n: items it was measured on by then.
        value: the objective over all items, estimated from these.
        se: standard error of that estimate, given all items of the split.
    """

    n: int
    value: float
    se: float


@dataclass(frozen=True, eq=False)
class RungProgress:
    """Measurements of a candidate so far; it is on rung `len(results)`.

    Attributes:
        results: one for each rung it has left behind.
        scores: task → float64 [items], NaN where not measured; empty on the first rung.
        seconds: stage → wall time so far.
    """

    results: tuple[RungResult, ...] = ()
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One recipe scored (or failed) on one split: a fact, written once, whole.

    Evaluations compare by identity, because they hold arrays.
    """

    split: str
    """`search`, `select` or `test`."""
    digest: str
    """The recipe's content digest."""
    recipe: dict[str, Any]
    """The recipe as plain JSON data."""
    role: str = "search"
    """`search`: the optimizer's own trial; `parent`, `baseline`: a named reference; `finalist`: a
    search trial's recipe measured on a later split; `polished`: where a finalist's polish ended."""
    name: str | None = None
    """For parents and baselines: `base`, `math`, `ties default`; of a polish: `trial 12`, where it
    began."""
    value: float | None = None
    """The objective's value, larger is better; None when the evaluation failed."""
    se: float | None = None
    """The standard error of `value`."""
    violation: float = 0.0
    """Sum by which constraints are broken; for Optuna, which must not call such a trial the best.
    Not read back: whoever needs it judges the items."""
    n: int = 0
    """Number of items that `value` rests on."""
    estimated: bool = False
    """`value` estimates items that were not measured: it was pruned on a rung."""
    estimates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """If estimated: task → mean over all items, and its standard error."""
    rungs: tuple[RungResult, ...] = ()
    """One for each rung below the last that it was measured on, also the one it was pruned on."""
    asked: int | None = None
    """With rungs: number of items it was asked for, which is its cost."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Task → float64 [items], in the study's order of items; NaN where not measured."""
    answers: Mapping[str, AnswerFacts] = field(default_factory=dict)
    """Task → facts about its generated answers, in the order of `scores`, where they were looked
    at: on other splits than search."""
    reason: str | None = None
    """Why it failed; None when it did not."""
    params: Mapping[str, bool | float | int | str] = field(default_factory=dict)
    """Gene → natural value (search trials, and ends of a polish)."""
    genome: np.ndarray | None = None
    """float64 [genes], the whole raw vector (search trials, and ends of a polish)."""
    ask: int | None = None
    """The optimizer's ask index."""
    tells: int | None = None
    """Number of tells that had arrived when it was asked."""
    parents: tuple[int, ...] = ()
    """Ask indices."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The optimizer's state when this result arrived: members, coverage (`Optimizer.state`)."""
    attempt: int = 1
    """1 for the first try; more when earlier tries took their worker or the driver down."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage (`materialize`, `score`) → wall time in seconds."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library → version it was scored with."""
    weights: Mapping[str, Any] | None = None
    """The record of the weights that were scored (`materialize.disk.weight_record`), of finalists
    on select; exports are compared with it."""
    descent: DescentRecord | None = None
    """The gradient descent that ended at `genome`, where the proposal asked for one."""
    number: int | None = None
    """The Optuna trial number, set by the study."""
    finished: datetime | None = None
    """Time of the result; set by the study when absent. In UTC as read back."""

    @property
    def failed(self) -> bool:
        """True if there is no value."""
        return self.value is None

    @property
    def measured(self) -> bool:
        """True if it was measured on all items: neither failed nor pruned."""
        return not (self.failed or self.estimated)

    @property
    def optimizers_own(self) -> bool:
        """True if the optimizer asked for it: a search trial on the search split."""
        return self.role == "search" and self.split == "search"

    def cost(self, whole: int) -> int:
        """Items it was asked for, those of its descent too; a failure without rungs was asked for
        the `whole` split.
        """
        scored = (self.n or whole) if self.asked is None else self.asked
        return scored + (self.descent.items if self.descent else 0)


@dataclass(frozen=True)
class Descend:
    """Asks for a gradient descent from a proposal's genome, before its end is scored.

    Attributes:
        origin: where it begins, in words: `uniform`, `best so far`.
        steps: at most.
        rate: of a step, as a share of a gene's range, or of the way to a model.
        batch: fresh documents of a step, over all its tasks; each costs three items.
        held_back: share of the search split that is kept aside, to see when to stop.
        check: its loss is looked at every so many steps, and the best point is the end. 0: never,
            and the end is where the last step led.
        patience: the descent stops when so many looks brought nothing better.
        task: the task whose loss counts more than the others'; None: tasks count by their weights.
        share: that task's part of the loss; the other tasks have the rest, by their weights.
        pull: weight of the distance to the start in the loss, a mean over the genes.
        norm: of that distance: `l1` its absolute value, `l2` its square.
        rule: of a step: projected Adam's, or Frank-Wolfe's towards one model in each group.
        average: share of the last steps the mean of whose genomes is the end; 0: the last one is.
    """

    origin: str
    steps: int
    rate: float = 0.05
    batch: int = 30
    held_back: float = 0.2
    check: int = 5
    patience: int = 3
    task: str | None = None
    share: float = 0.5
    pull: float = 0.0
    norm: Literal["l1", "l2"] = "l2"
    rule: Literal["adam", "frank_wolfe"] = "adam"
    average: float = 0.0

    @property
    def averaged(self) -> int:
        """Number of the last steps whose genomes are averaged, 1 or more."""
        return max(1, round(self.average * self.steps))

    def looks(self, step: int) -> bool:
        """True if the documents held back are looked at after so many steps."""
        return bool(self.check) and (step % self.check == 0 or step == self.steps)


@dataclass(frozen=True)
class DescentRecord:
    """How far a gradient descent has come: all that is needed to go on with it, as JSON data.

    Attributes:
        origin: where it began: `uniform`, a model's name, or as in `Descend`.
        step: steps that were made.
        genome: where it is, (dimension,).
        mean: Adam's first moment, and `square` its second, each (dimension,).
        losses: of each step's documents, before the step.
        checks: (step, loss of the documents held back) of every look.
        best: the genome of the least loss held back so far, and `best_step` its step.
        items: what it was asked for: three a document and step, one a document and look.
        attempts: sessions or workers in a row that did not live to see a job of it done.
        done: why it ended; None while it goes on.
        start: the genome where it began, (dimension,).
        gains: expert → by how much the loss falls, to first order, for each unit by which its
            weights are raised where the descent began.
        slopes: of a descent before the search: [steps], Σ x, Σ g, Σ x g and Σ x² over these, of
            genome x and gradient g, each (dimension,).
        held: documents held back; 0 before the first look at them.
        trail: the genome at every look, rounded, of few genes; for figures.
        tail: sum of the genomes of the steps that `average` counts, (dimension,).
        seconds: wall time of its jobs.
        asked: what a proposal asked for; None of the descents before the search.
    """

    origin: str
    genome: list[float]
    mean: list[float]
    square: list[float]
    best: list[float]
    step: int = 0
    best_step: int = 0
    losses: list[float] = field(default_factory=list)
    checks: list[list[float]] = field(default_factory=list)
    items: int = 0
    attempts: int = 0
    done: str | None = None
    start: list[float] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)
    slopes: list[list[float]] = field(default_factory=list)
    held: int = 0
    trail: list[list[float]] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)
    asked: Descend | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DescentRecord:
        """Read what `dataclasses.asdict` made of a record."""
        asked = data.get("asked")
        return cls(**{**data, "asked": Descend(**asked) if asked else None})

    @property
    def checked(self) -> bool:
        """Whether the documents held back were looked at where it is."""
        return bool(self.checks) and self.checks[-1][0] == self.step


@dataclass(frozen=True)
class PolishRecord:
    """A gradient descent from a finalist, as JSON data.

    Attributes:
        trial: the finalist's number, as a search trial.
        options: how it descends, and by which loss.
        descent: how far it has come.
    """

    trial: int
    options: Mapping[str, Any]
    descent: DescentRecord


@dataclass(frozen=True, eq=False)
class Marker:
    """An evaluation in flight: written before work begins, so that a crash leaves a trace."""

    slot: int
    """Place in the study; a slot holds one marker, the latest."""
    digest: str
    split: str
    attempt: int = 1
    ask: int | None = None
    tells: int | None = None
    genome: np.ndarray | None = None
    """float64 [genes]"""
    parents: tuple[int, ...] = ()
    progress: RungProgress | None = None
    """With rungs: what was measured on those below the one in flight."""
    not_counted: bool = False
    """The driver's death meanwhile is not counted as an attempt of the candidate."""
    descent: DescentRecord | None = None
    """How far the descent has come that its proposal asked for."""
