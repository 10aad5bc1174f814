"""A made-up merge: items with margins that are smooth in the genes, of very different weight."""

from __future__ import annotations

import numpy as np

from evomerge.judging.scores import Scores
from evomerge.search.descent import begin, looked, stepped, with_slopes


class Logistic:
    """Items i with margins bᵢ + aᵢ·(x − x*) − Σ c (x − x*)²; right where they are positive.

    The loss is log(1 + e^−margin), the score the share of items that are right.
    """

    def __init__(self, seed, genes=28, items=240):
        rng = np.random.default_rng(seed)
        weight = np.exp(rng.uniform(np.log(0.1), np.log(3.0), genes))
        self.optimum = rng.uniform(0.1, 0.9, genes)
        self.slopes = rng.normal(size=(items, genes)) * weight
        self.offsets = rng.normal(size=items) * 0.5 + 1.2
        self.curvature, self.genes, self.items = 0.2 * weight**2, genes, items

    def margins(self, genome, items):
        away = genome - self.optimum
        return self.offsets[items] + self.slopes[items] @ away - self.curvature @ away**2

    def scores(self, genome):
        right = self.margins(genome, slice(None)) > 0
        return Scores(float(right.mean()), float(right.std() / self.items**0.5), self.items)

    def loss(self, genome, items):
        return float(np.logaddexp(0, -self.margins(genome, items)).mean())

    def gradient(self, genome, items):
        """The derivative of the mean loss of items."""
        slope = -1 / (1 + np.exp(self.margins(genome, items)))
        steep = self.slopes[items] - 2 * self.curvature * (genome - self.optimum)
        return (slope[:, None] * steep).mean(axis=0)

    def descent(self, start=None, steps=30, batch=30, rate=0.05, within=None):
        """Descend as a campaign does: a fifth of the items is held back, and looked at every fifth
        step; `within`: on so many of the items.
        """
        items = within or self.items
        order = np.random.default_rng(7).permutation(items)
        held, left = order[: items // 5], order[items // 5 :]
        record = begin("start", np.full(self.genes, 0.5) if start is None else start)
        while record.done is None:
            genome = np.array(record.genome)
            if record.step % 5 == 0 and not record.checked:
                record = looked(record, self.loss(genome, held), steps, patience=3)
                continue
            places = range(record.step * batch, (record.step + 1) * batch)
            gradient = self.gradient(genome, np.take(left, places, mode="wrap"))
            record = stepped(with_slopes(record, gradient), gradient, rate)
        return record
