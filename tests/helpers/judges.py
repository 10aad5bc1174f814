"""Judges of the tasks t0, t1, …, and items of one recipe and of two."""

from __future__ import annotations

import numpy as np

from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge


def judge(weights=(1.0,), signs=None, kind="mean", **options):
    names = [f"t{i}" for i in range(len(weights))]
    objective = find_objective(kind, "test", options, names)
    signs = np.ones(len(weights)) if signs is None else np.array(signs)
    return Judge(objective, names, np.array(weights, dtype=float), signs)


def right(count, n):
    return (np.arange(n) < count) * 1.0


def pair(won, lost, n, both=0):
    """The items of two recipes of which one alone is right in `won` and in `lost` cases."""
    ours, theirs = np.zeros(n), np.zeros(n)
    ours[:won], theirs[won : won + lost] = 1, 1
    ours[n - both :] = theirs[n - both :] = 1
    return ours, theirs


def tasks(*pairs):
    """Items of A and of B, of pairs of arrays."""
    return [{f"t{i}": p[side] for i, p in enumerate(pairs)} for side in (0, 1)]
