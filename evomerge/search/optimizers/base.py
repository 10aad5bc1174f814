"""`Optimizer`, the base class, and the registry of optimizers by name.

An optimizer is a class in a file of this folder under `@optimizer("name")`, in another package's
entry point of the group `evomerge.optimizers`, or `module:Class` in the campaign file. Its
constructor takes `(domain, seed)` and then keyword-only options, whose annotations and defaults are
the schema of the campaign file's `optimizer` section.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from evomerge.common.plugins import Registry, subclass_of
from evomerge.judging.scores import Scores
from evomerge.search.spaces.genes import Domain, Genome
from evomerge.study.record import Descend

RECORDED = 256
"""Most members that are recorded with every trial, about 1 kB; of more, none are."""


@dataclass(frozen=True)
class Proposal:
    """A genome to try.

    Attributes:
        ask: index of the ask that gave it, from 0.
        tells: how many tells the optimizer had heard when it was asked.
        genome: shape (dimension,), float64 in [0, 1].
        parents: ask indices of the proposals it was made from.
        descent: the gradient descent that begins at the genome, and whose end is scored; told is
            that end, as the genome.
    """

    ask: int
    tells: int
    genome: Genome
    parents: tuple[int, ...] = ()
    descent: Descend | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """A genome whose scores are known before the first ask.

    Attributes:
        genome: shape (dimension,), float64 in [0, 1].
        scores: on the search split.
    """

    genome: Genome
    scores: Scores


class Optimizer(ABC):
    """Proposes genomes and learns from their scores; asynchronous, and exact under replay.

    `ask` answers while earlier proposals are still in flight. Its answer depends only on the seed,
    the ask index and the tells heard so far, in their order: telling a new optimizer what it began
    with and the recorded trials brings it to the same state.

    Attributes:
        all_goals: it maximises every goal of several, and not the value alone.
        loss: the kind of `fitness.surrogate_loss` that its descents follow; None: the campaign's.
    """

    all_goals: ClassVar[bool] = False
    loss: ClassVar[str | None] = None

    def __init__(self, domain: Domain, seed: int) -> None:
        """`domain`: the genes, where to begin, and how genomes recombine."""
        self.domain = domain
        self.seed = seed
        self.tells = 0
        self._openings: Sequence[Genome] = domain.starts

    def begin(self, known: Sequence[Known]) -> None:
        """Begin at what is known before the first ask, such as the models' own scores.

        The best of them becomes the last of the openings, so that no search ends below it. Without
        this call an optimizer is the bare algorithm.
        """
        best = max(known, key=lambda one: one.scores.best_key, default=None)
        if best and all(best.genome.tobytes() != one.tobytes() for one in self._openings):
            self._openings = (*self._openings, best.genome)
        self._begin(known)

    def learn_earlier(self, known: Sequence[Known]) -> None:
        """Learn results of earlier searches, before all else; by default nothing is learned.

        They are no results of this search: what is learned may only guess at what was not tried.
        """
        return None

    def ask(self, index: int) -> Proposal:
        """Answer ask `index`: the openings (the starts, what an optimizer adds, the best of what is
        known) first, then the optimizer's own proposals.
        """
        opening = index < len(self._openings)
        genome, parents = (self._openings[index], ()) if opening else self.answer(index)
        asks = tuple(ask for ask in parents if ask >= 0)
        return Proposal(index, self.tells, genome, asks, self.descent_from(index, genome, parents))

    def descent_from(self, index: int, genome: Genome, parents: Sequence[int]) -> Descend | None:
        """Return the gradient descent that ask `index` goes on with from its genome; by default it
        goes on with none.

        Args:
            genome: that was answered.
            parents: ask indices, of what was known before below 0; none of openings.
        """
        return None

    def descends(self, trials: int) -> tuple[Descend, float] | None:
        """Return the longest descent that it asks for, and how many of so many trials begin with
        one; None: never.

        Campaigns whose merges or tasks have no gradient are refused where it does.
        """
        return None

    def remark(self) -> str | None:
        """Say in a line what it does in another way for so many genes; by default nothing."""
        return None

    def begun_with(self) -> dict[str, Any]:
        """Return what a new study keeps of how the optimizer begins: JSON data, by default none."""
        return {}

    def go_on(self, begun_with: Mapping[str, Any]) -> None:
        """Be as a study was begun, before it is told anything; by default it is no other.

        `begun_with`: what the study kept; empty where it knows of no such thing.
        """
        return None

    def answer(self, index: int, nth: int = 0) -> tuple[Genome, tuple[int, ...]]:
        """Return the `nth` answer that it could give to ask `index`, beyond the openings: a genome
        and its parents' ask indices. The first is the one it gives.
        """
        return self._propose(self._random(index, stream=nth and nth + 1))

    def tell(self, proposal: Proposal, scores: Scores | None) -> None:
        """Learn how a proposal did; None when it failed."""
        self._learn(proposal, scores)
        self.tells += 1

    def state(self) -> dict[str, Any]:
        """Return the part of the state to record with each evaluation: JSON data by name.

        `members`: ask indices of those it keeps and breeds from, where it keeps any (see `kept`);
        `coverage`, `entropy`: numbers, drawn over the trials.
        """
        return kept(self.members())

    def members(self) -> Sequence[int]:
        """Return the ask indices of its archive or population; none by default."""
        return ()

    def check_metrics(self, names: Collection[str]) -> None:
        """Check options that name tasks against those there are.

        Raises:
            InputError: an option names none of them.
        """
        return None

    def check_goals(self, count: int) -> None:
        """Refuse to maximise so many goals at once; by default any number is borne.

        Raises:
            InputError: the optimizer cannot; names what can.
        """
        return None

    def check_budget(self, trials: int) -> None:
        """Refuse a budget that it cannot work with; by default any is borne.

        Raises:
            InputError: too few trials; names the way out.
        """
        return None

    def check_screening(self) -> None:
        """Refuse to be screened, where asking leaves traces or is screened already.

        Raises:
            InputError: it cannot be; names what can.
        """
        return None

    def _begin(self, known: Sequence[Known]) -> None:
        """Learn what is known, by default as results of asks below 0, which are no trials."""
        for number, one in enumerate(known, 1):
            self._learn(Proposal(-number, 0, one.genome), one.scores)

    @abstractmethod
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        """Propose a genome and its parents' ask indices; all randomness comes from `rng`."""

    @abstractmethod
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        """Learn from one result; `scores` is None for a failure."""

    def _random(self, index: int, stream: int = 0) -> np.random.SeedSequence:
        """Key randomness by (seed, stream, index); asks use stream 0, their further answers
        streams from 2 on.
        """
        return np.random.SeedSequence([self.seed & 0xFFFFFFFFFFFFFFFF, stream, index])


def kept(asks: Sequence[int], **beside: Sequence[Any]) -> dict[str, Any]:
    """Make `members` for `state`, with lists beside them; nothing where there are too many."""
    return {"members": list(asks), **beside} if len(asks) <= RECORDED else {}


def ask_index(rng: np.random.SeedSequence) -> int:
    """Return the index of the ask that `_propose` was given `rng` for."""
    assert isinstance(rng.entropy, list)
    return int(rng.entropy[-1])


REGISTRY = Registry[type[Optimizer]](
    kind="optimizer",
    package="evomerge.search.optimizers",
    group="evomerge.optimizers",
    accept=subclass_of(Optimizer, "evomerge.search.optimizers.Optimizer"),
)


def optimizer(name: str) -> Callable[[type[Optimizer]], type[Optimizer]]:
    """Register a class as the optimizer called `name` in campaign files."""

    return lambda kind: REGISTRY.add(name, kind)


def optimizers() -> Mapping[str, type[Optimizer]]:
    """Every registered optimizer by name, in alphabetical order."""
    return REGISTRY.all()


def summary(kind: type) -> str:
    """Return the first line of a plug-in's docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]
