"""Estimators by name, fitted to the items of models that were measured on all.

mp-IRT and gmp-IRT are MERGE3's (Mencattini et al. 2025, arXiv:2502.10436, section 3). The paper
takes a merge's ability for a mixture of its sources', and fits the mixture. Here the archive of
merges measured so far says where abilities lie: a normal distribution, the prior of a new one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.constraints import Items
from evomerge.judging.corpus_values import is_corpus
from evomerge.judging.estimators import Estimates, Estimator
from evomerge.judging.estimators.irt import ItemModel, fit
from evomerge.judging.estimators.mean import mean, mean_of

MOST_DIMENSIONS = 4
FOLDS = 3
"""Cross-validation of the errors: fits without a third of the models each."""
DOUBT = (4, 2.0)
"""(number, factor): this many made-up held-out models, with squared errors this many times too
large, are added to the real ones, since a few say little of how far errors can be trusted."""


def estimator_of(
    name: str, full: Sequence[Items], rungs: Sequence[Mapping[str, NDArray[np.int64]]]
) -> Estimator:
    """Make `mean`, `mp_irt` or `gmp_irt` from the responses of models measured on all items.

    Tasks whose metric leaves [0, 1], or is of the whole corpus, have their mean.

    Args:
        name: of the estimator.
        full: task → scores of every such model, shape (items,).
        rungs: for each rung but the last, task → places of its items.

    Raises:
        ValueError: item response theory cannot be fitted to these responses.
    """
    if name == "mean":
        return mean
    # 1. the tasks whose metric is a share of right answers
    tasks = [
        task
        for task in (full[0] if full else {})
        if all(
            not is_corpus(items[task]) and items[task].min() >= 0 and items[task].max() <= 1
            for items in full
        )
    ]
    if not tasks:
        raise ValueError("item response theory needs a metric between 0 and 1")
    full = [{task: items[task] for task in tasks} for items in full]
    rungs = [{task: rung[task] for task in tasks} for rung in rungs]
    if len(full) < FOLDS:
        raise ValueError(f"item response theory needs {FOLDS} models measured on all items")
    # 2. cross-validation: by how much standard errors on each rung must grow
    generalised = name == "gmp_irt"
    folds = [full[start::FOLDS] for start in range(FOLDS)]
    without = [[m for f in folds if f is not fold for m in f] for fold in folds]
    trained = [_fit(models, generalised) for models in without]
    factors = {
        sum(len(places) for places in rung.values()): _factor(
            [error for f, e in zip(folds, trained, strict=True) for error in _errors(e, f, rung)]
        )
        for rung in rungs
    }
    # 3. the fit to all models, with these factors
    return replace(_fit(full, generalised), factors=factors)


def _fit(full: Sequence[Items], generalised: bool) -> ResponseEstimator:
    tasks = list(full[0])
    responses = [np.concatenate([items[task] for task in tasks]) for items in full]
    model = fit(responses, min(len(tasks) + 1, len(full), MOST_DIMENSIONS))
    return ResponseEstimator(tuple(tasks), model, generalised)


def _errors(
    estimator: ResponseEstimator, held_out: Sequence[Items], rung: Mapping[str, NDArray[np.int64]]
) -> list[float]:
    """Errors of estimates for models that were not fitted, in standard errors."""
    found = []
    for items in held_out:
        partial = {task: np.full(len(values), np.nan) for task, values in items.items()}
        for task, places in rung.items():
            partial[task][places] = items[task][places]
        estimates = estimator(partial)
        off = sum(estimates[task][0] - items[task].mean() for task in items)
        expected = np.sqrt(sum(error**2 for _, error in estimates.values()))
        found.append(float(off / max(expected, 1e-9)))
    return found


def _factor(errors: Sequence[float]) -> float:
    """The factor of standard errors, ≥ 1: in-sample errors are too small, never too large."""
    count, doubt = DOUBT
    square = (np.square(errors).sum() + count * doubt) / (len(errors) + count)
    return max(1.0, float(np.sqrt(square)))


@dataclass(frozen=True)
class ResponseEstimator:
    """mp-IRT: measured responses, and the item model's chances for the rest.

    (k/N) · mean(measured) + (1 − k/N) · mean(P over the others), of each task. Its variance: that
    of the others' responses, Σ P (1 − P), and that of the ability, by the delta method. It
    leaves out the errors of the items' own parameters, for which the factors make up.

    Attributes:
        generalised: gmp-IRT, the mean of mp-IRT and of the measured items' mean, whose errors are
            taken to go together.
        factors: number of measured items → factor of the standard errors.
    """

    tasks: tuple[str, ...]
    model: ItemModel
    generalised: bool
    factors: Mapping[int, float] = field(default_factory=dict)

    def __call__(self, items: Items) -> Estimates:
        """Estimate each task's mean over all its items, with its standard error."""
        # 1. the model's ability θ with its covariance C, and the chances P with slopes ∂P/∂θ
        responses = np.concatenate([items[task] for task in self.tasks])
        theta, covariance = self.model.ability(responses)
        chances = self.model.chances(theta)
        slopes = self.model.alpha * (chances * (1 - chances))[:, None]
        ends = np.cumsum([len(items[task]) for task in self.tasks])[:-1]
        parts = zip(self.tasks, np.split(chances, ends), np.split(slopes, ends), strict=True)
        found: dict[str, tuple[float, float]] = {}
        # 2. each task: measured responses and chances in sum; Var = Σ P (1 − P) + gᵀ C g, over N²
        for task, p, slope in parts:
            unseen = np.isnan(items[task])
            total = np.where(unseen, p, items[task]).sum()
            gradient = slope[unseen].sum(axis=0)
            variance = (p * (1 - p))[unseen].sum() + gradient @ covariance @ gradient
            found[task] = (float(total / len(p)), float(np.sqrt(variance) / len(p)))
        # 3. gmp-IRT averages with the plain mean; errors on this rung grow by its factor
        if self.generalised:
            found = self._with_mean(items, found)
        factor = self.factors.get(int(np.isfinite(responses).sum()), 1.0)
        modelled = {task: (value, factor * error) for task, (value, error) in found.items()}
        return {**mean({t: v for t, v in items.items() if t not in found}), **modelled}

    def _with_mean(self, items: Items, found: Estimates) -> dict[str, tuple[float, float]]:
        plain = {task: mean_of(items[task]) for task in self.tasks}
        return {
            task: ((value + plain[task][0]) / 2, (error + plain[task][1]) / 2)
            for task, (value, error) in found.items()
        }
