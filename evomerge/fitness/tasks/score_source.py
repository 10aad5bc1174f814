"""Sources of scores: one metric of one set of documents each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from evomerge.fitness.tasks.documents import marks
from evomerge.judging.answer_facts import AnswerFacts
from evomerge.judging.constraints import Values

MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class ScoreSource(ABC):
    """One metric, and the documents it is measured on.

    Attributes:
        name: the task's name; of a measure beside its score, `task.metric`.
        kind: lm-eval's output type of the task, `callable`, `agreement` or `composed`.
        metric: the metric's name.
        filter: the name of the filter under which it is read.
        higher_is_better: whether more of the metric is better.
        weight: the entry's weight, or a group member's share of it; 0 for a measure.
        documents: in lm-eval's order.
        ids: their item ids.
        requests: the instances of each item.
        excluded: ids whose document serves as a few-shot example.
        dataset: the hub's name for their data set; None for local data.
        test_set: which public test set the documents are, if they are one.
        aggregate: how items give the score: `mean`, a name of
            `judging.corpus_values.AGGREGATES`, or `own`, a function of the task's own.
        runs_code: whether scoring runs code that the model writes.
        teacher: the model with whose answers those of a merge are compared; None for no such.
        composed_of: the tasks whose documents are joined in each of these.
    """

    name: str
    kind: str
    metric: str
    filter: str
    higher_is_better: bool
    weight: float
    documents: tuple[Any, ...]
    ids: tuple[str, ...]
    excluded: frozenset[str]
    requests: tuple[tuple[Instance, ...], ...]
    dataset: str | None = None
    test_set: str | None = None
    aggregate: str = MEAN
    runs_code: bool = False
    teacher: str | None = None
    composed_of: tuple[str, ...] = ()

    def marks(self, place: int) -> tuple[str, ...]:
        """Compute the marks by which other records of a document are known; see `documents`."""
        return marks(self.documents[place])

    @abstractmethod
    def asked(self) -> str:
        """Digest, in hex, what is asked and what counts as right."""

    @abstractmethod
    def values(self, places: Sequence[int]) -> Values:
        """Read the metric of the documents at `places` (ascending) off their requests' answers.

        Returns:
            float64 [places]; `CorpusValues` where the score is of the whole corpus.

        Raises:
            CandidateError: the metric's own code fails on the candidate, or is not finite.
            InputError: the metric is not one number per document, or what its aggregation takes.
        """

    def answer_facts(self, places: Sequence[int]) -> AnswerFacts:
        """Say how long the answers at `places` are, and which were cut off or not readable.

        `values` must have read them before. A source that does not generate knows nothing of this.
        """
        return AnswerFacts.unknown(len(places))
