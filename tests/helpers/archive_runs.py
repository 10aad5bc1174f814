"""Domains and scores for optimizers that keep an archive."""

from __future__ import annotations

import numpy as np

from evomerge.judging.scores import Scores
from evomerge.search.spaces.genes import Domain, Gene


def fragments(genome):
    """Eight items in two tasks, each solved by genomes near a point of its own."""
    solved = (np.abs(genome[:4] - 0.2) < 0.15).astype(float)
    smooth = np.exp(-4 * (genome[:4] - 0.8) ** 2)
    items = {"near": solved, "smooth": smooth}
    means = {task: float(v.mean()) for task, v in items.items()}
    return Scores(sum(means.values()) / 2, 0.0, 8, items=items, metrics=means)


def mixed(seeds=True):
    """Floats, an int, a categorical, and two sources."""
    genes = [
        *(Gene(f"g{i}") for i in range(4)),
        Gene("n", 1, 5, kind="int"),
        Gene("c", kind="categorical", choices=("a", "b", "c")),
    ]
    sources = {"one": np.full(6, 0.1), "two": np.full(6, 0.9)} if seeds else {}
    return Domain(genes, np.full(6, 0.5), [np.full(6, 0.3)], sources)


def search(optimizer, asks, score=fragments):
    record = []
    for index in range(asks):
        proposal = optimizer.ask(index)
        scores = score(proposal.genome)
        optimizer.tell(proposal, scores)
        record.append((proposal, scores))
    return record
