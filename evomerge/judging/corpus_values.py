"""Scores of a whole corpus, such as a perplexity or BLEU, and each document's part in them.

Such a score is a function g of sums over documents: log-likelihoods and words, counts of n-grams, a
table of right and wrong answers. What is recorded of a document is its part of the sums; the score
of any set of documents follows from the parts, as a stock lm-eval run over that set has it.

For whatever needs one number per document, the score is written as a mean (`CorpusValues`).
Intervals and paired tests resample the documents' parts (`judging.resampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evomerge.judging.constraints import Values

Aggregate = Callable[[Values], Values]
"""Sums over documents, shape (..., parts) → the score, shape (...)."""

BLEU_ORDER = 4
"""Longest n-grams of BLEU, in words; its parts are [length, length of the references, n-grams that
match of each order, n-grams of each order]."""
CHRF_BETA = 2.0
"""How much more recall counts in chrF; its parts are [n-grams, the reference's, those that match]
of each order."""


def perplexity(sums: Values) -> Values:
    """exp(−Σ log-likelihood / Σ weight)."""
    with np.errstate(over="ignore"):
        return np.exp(-sums[..., 0] / sums[..., 1])


def bits_per_byte(sums: Values) -> Values:
    """−Σ log₂-likelihood / Σ bytes."""
    return -sums[..., 0] / sums[..., 1] / np.log(2)


def nanmean(sums: Values) -> Values:
    """The mean over the documents that have a value: Σ value / Σ 1."""
    return _ratio(sums[..., 0], sums[..., 1])


def f1(sums: Values) -> Values:
    """F₁ of the class 1, of counts (true positives, false positives, false negatives)."""
    right, wrong, missed = np.moveaxis(sums, -1, 0)
    return _ratio(2 * right, 2 * right + wrong + missed)


def matthews_corrcoef(sums: Values) -> Values:
    """Matthews' correlation, of [right answers, true labels of each class, answers of each class].

    (c s − Σₖ pₖ tₖ) / √((s² − Σ pₖ²)(s² − Σ tₖ²)) for s documents with c right (Gorodkin 2004).
    """
    classes = sums.shape[-1] // 2
    right, true, found = sums[..., 0], sums[..., 1 : classes + 1], sums[..., classes + 1 :]
    count = true.sum(axis=-1)
    covariance = right * count - (true * found).sum(axis=-1)
    spread = (count**2 - (found**2).sum(axis=-1)) * (count**2 - (true**2).sum(axis=-1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0)))


def bleu(sums: Values) -> Values:
    """BLEU from 0 to 100 (Papineni et al. 2002), smoothed as sacrebleu does by default (`exp`)."""
    length, wanted = sums[..., 0], sums[..., 1]
    right = sums[..., 2 : 2 + BLEU_ORDER]
    total = sums[..., 2 + BLEU_ORDER :]
    # 1. the k-th order without a match counts as 2⁻ᵏ matches (Chen & Cherry 2014, method 3)
    none: NDArray[np.bool_] = np.logical_and(right == 0, total > 0)
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), right)
    # 2. the geometric mean of precisions; 0 where an order has no n-grams at all, or none matches
    precisions = _ratio(smoothed, total)
    scored: NDArray[np.bool_] = np.asarray((total > 0).all(-1) & (right > 0).any(-1))
    mean = np.exp(np.log(np.where(scored[..., None], precisions, 1.0)).mean(axis=-1))
    # 3. the brevity penalty
    short = np.exp(np.minimum(0, 1 - _ratio(wanted, length)))
    return np.where(scored, 100 * short * mean, 0.0)


def chrf(sums: Values) -> Values:
    """chrF from 0 to 100 (Popović 2015): F₂ of precision and recall, averaged over the orders."""
    found, wanted, right = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    known = (found > 0) & (wanted > 0)
    orders = known.sum(axis=-1)
    precision = _ratio(np.where(known, _ratio(right, found), 0).sum(axis=-1), orders)
    recall = _ratio(np.where(known, _ratio(right, wanted), 0).sum(axis=-1), orders)
    factor = CHRF_BETA**2
    return 100 * _ratio((1 + factor) * precision * recall, factor * precision + recall)


def ter(sums: Values) -> Values:
    """Translation edit rate in percent (Snover et al. 2006): edits over words of references."""
    edits, words = sums[..., 0], sums[..., 1]
    return 100 * np.where(words > 0, _ratio(edits, words), (edits > 0).astype(np.float64))


def _ratio(above: Any, below: Any) -> Values:
    """Divide; 0 where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below != 0)


AGGREGATES: Mapping[str, Aggregate] = {
    "perplexity": perplexity,
    "weighted_perplexity": perplexity,
    "bits_per_byte": bits_per_byte,
    "nanmean": nanmean,
    "f1": f1,
    "matthews_corrcoef": matthews_corrcoef,
    "bleu": bleu,
    "chrf": chrf,
    "chrf++": chrf,
    "ter": ter,
}
"""lm-eval's name of an aggregation → the function of its sums."""


class CorpusValues(np.ndarray):
    """A corpus score as one number per document, whose mean is the score itself.

    Document i has g + (n − 1)(ḡ₋ − g₋ᵢ), with g₋ᵢ the score without it and ḡ₋ the mean of these:
    the jackknife's values, whose standard error of the mean is the jackknife's of the score (Efron
    & Stein 1981). Taking some of the documents aggregates them anew; arithmetic gives plain arrays.
    Where a document was not measured, its parts and its value are NaN.

    Attributes:
        aggregate: a name in `AGGREGATES`.
    """

    aggregate: str = ""
    _parts: Values | None = None

    @classmethod
    def of(cls, aggregate: str, parts: Values) -> CorpusValues:
        """Aggregate documents' parts, shape (documents, parts)."""
        values = _jackknife(AGGREGATES[aggregate], parts).view(cls)
        values.aggregate, values._parts = aggregate, parts
        return values

    @property
    def parts(self) -> Values:
        """What each document adds to the sums, float64 [documents, parts]."""
        assert self._parts is not None, "a view of corpus values; use `is_corpus` to tell"
        return self._parts

    @override
    def __getitem__(self, key: Any) -> Any:
        if self._parts is not None and np.ndim(taken := self._parts[key]) == 2:
            return CorpusValues.of(self.aggregate, taken)
        return np.asarray(self)[key]

    @override
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, CorpusValues) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    @override
    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._parts is None:
            return np.asarray(self).__reduce_ex__(protocol)
        return CorpusValues.of, (self.aggregate, self._parts)


def is_corpus(values: Values) -> TypeGuard[CorpusValues]:
    """Say whether a task's values come with parts."""
    return isinstance(values, CorpusValues) and values._parts is not None


def with_items(known: Values, places: NDArray[np.int64], found: Values) -> Values:
    """Add the values of some documents to those that are known; the arrays given stay as they are.

    Args:
        known: of all documents, float64 [documents], NaN where not measured.
        places: of the documents to add.
        found: their values, in that order.
    """
    if not is_corpus(found):
        values = np.array(known)
        values[places] = found
        return values
    parts = np.full((len(known), found.parts.shape[1]), np.nan)
    if is_corpus(known):
        parts[:] = known.parts
    parts[places] = found.parts
    return CorpusValues.of(found.aggregate, parts)


def _jackknife(score: Aggregate, parts: Values) -> Values:
    """The values of `CorpusValues`, float64 [documents]."""
    values = np.full(len(parts), np.nan)
    rows = np.isfinite(parts).all(axis=1)
    known = parts[rows]
    sums = known.sum(axis=0)
    if len(known) == 1:
        values[rows] = score(sums)
    elif len(known):
        without = score(sums - known)
        values[rows] = score(sums) + (len(known) - 1) * (without.mean() - without)
    return values
