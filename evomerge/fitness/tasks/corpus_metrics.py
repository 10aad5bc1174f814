"""Read off lm-eval's per-document results what they add to a score of the whole corpus.

lm-eval's corpus metrics hand a pair per document (reference and answer, label and choice, log-
likelihood and weight) to a function of all pairs. Here each pair becomes parts that add up; the
functions of the sums are `judging.corpus_values.AGGREGATES`, under lm-eval's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import lm_eval.api.metrics
import numpy as np
from lm_eval.api.registry import get_aggregation

from evomerge.fitness.tasks.score_source import MEAN
from evomerge.judging.constraints import Values
from evomerge.judging.corpus_values import AGGREGATES

BRIER = "brier_score"
OWN = "own"
"""What an aggregation is called that lm-eval does not have by a name known here."""
GROUPS = 200
"""The most groups of documents that the jackknife leaves out, each at the cost of a call."""


def aggregate_of(function: Any) -> str | None:
    """Name what an aggregation does: `mean`, a name in `AGGREGATES`, or `own`; None: nothing.

    The Brier score is a mean: of documents' squared errors.
    """
    if function is None or function is get_aggregation("bypass"):
        return None
    if function is lm_eval.api.metrics.mean or getattr(function, "__name__", "") == MEAN:
        return MEAN
    if is_brier(function):
        return MEAN
    return next((name for name, known in _known().items() if known is function), OWN)


def is_brier(function: Any) -> bool:
    """Say whether an aggregation is lm-eval's Brier score."""
    return function is get_aggregation(BRIER)


@cache
def _known() -> dict[str, Any]:
    return {name: get_aggregation(name) for name in AGGREGATES}


def parts_of(aggregate: str, found: Sequence[Any], classes: int) -> Values:
    """The parts of documents, float64 [documents, parts].

    Args:
        aggregate: a name in `AGGREGATES`.
        found: of each document, what `process_results` gives for the metric.
        classes: the largest number of choices of a document of the task.

    Raises:
        TypeError, ValueError, IndexError: it is not what the aggregation takes.
    """
    rows = [_PARTS[aggregate](one, classes) for one in found]
    return np.array(rows, dtype=np.float64)


def by_own_function(function: Callable[[list[Any]], Any], found: Sequence[Any]) -> Values:
    """Write a score that a function gives of all documents together as their mean.

    Document i has f + (G − 1)(m − g), with g the score without its group and m the mean of these
    over G groups: the values of the jackknife (Efron & Stein 1981), of exactly these documents.

    Args:
        function: of what `process_results` gave for the documents, to a number.
        found: that, of each document.

    Returns:
        float64 [documents], whose mean is the score.
    """
    count = min(len(found), GROUPS)
    score = float(function(list(found)))
    if count < 2:
        return np.full(len(found), score)
    group = np.arange(len(found)) % count
    without = np.array(
        [
            float(function([one for one, own in zip(found, group, strict=True) if own != each]))
            for each in range(count)
        ]
    )
    values = score + (count - 1) * (without.mean() - without)[group]
    return np.asarray(values + (score - values.mean()))


def squared_error(found: tuple[int, Any]) -> float:
    """The squared error of a document's probabilities, given (label, probabilities)."""
    label, chances = found
    if label < 0:
        raise IndexError(f"no choice {label}")
    wanted = np.eye(len(chances))[label]
    return float(np.square(np.asarray(chances) - wanted).sum())


def _weighted(found: Any, classes: int) -> list[float]:
    likelihood, weight = found
    return [likelihood, weight]


def _each(found: Any, classes: int) -> list[float]:
    return [float(found), 1.0]


def _where_known(found: Any, classes: int) -> list[float]:
    value = float(found)
    return [0.0, 0.0] if np.isnan(value) else [value, 1.0]


def _binary(found: Any, classes: int) -> list[float]:
    """Counts of (true positives, false positives, false negatives) of the class 1."""
    label, answer = map(int, found)
    if not {label, answer} <= {0, 1}:
        raise ValueError("F₁ is of two classes, 0 and 1")
    return [label * answer, (1 - label) * answer, label * (1 - answer)]


def _confusion(found: Any, classes: int) -> list[float]:
    """[right, one-hot label, one-hot answer]."""
    label, answer = map(int, found)
    if min(label, answer) < 0:
        raise ValueError(f"no choice {min(label, answer)}")
    each = np.eye(classes)
    return [float(label == answer), *each[label], *each[answer]]


def _with_sacrebleu(build: Callable[[Any], Any]) -> Callable[[Any, int], list[float]]:
    """Parts by a metric of sacrebleu, with the settings that lm-eval has."""

    @cache
    def metric() -> Any:
        import sacrebleu.metrics

        return build(sacrebleu.metrics)

    def parts(found: Any, classes: int) -> list[float]:
        references, predictions = lm_eval.api.metrics._sacreformat([found[0]], [found[1]])
        (row,) = metric()._extract_corpus_statistics(predictions, references)
        return list(row)

    return parts


_PARTS: dict[str, Callable[[Any, int], list[float]]] = {
    "perplexity": _each,
    "weighted_perplexity": _weighted,
    "bits_per_byte": _weighted,
    "nanmean": _where_known,
    "f1": _binary,
    "matthews_corrcoef": _confusion,
    "bleu": _with_sacrebleu(lambda metrics: metrics.BLEU(force=True)),
    "chrf": _with_sacrebleu(lambda metrics: metrics.CHRF()),
    "chrf++": _with_sacrebleu(lambda metrics: metrics.CHRF(word_order=2)),
    "ter": _with_sacrebleu(lambda metrics: metrics.TER()),
}
