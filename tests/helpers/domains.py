"""Domains and scores that the optimizers' tests share."""

from __future__ import annotations

import numpy as np

from evomerge.config import OptimizerConfig, SpaceConfig
from evomerge.judging.scores import Scores
from evomerge.models.layout import Layout, TensorSpec
from evomerge.search.optimizers import build_optimizer
from evomerge.search.spaces.genes import Condition, Domain, Gene
from evomerge.search.spaces.weights import WeightSpace

OPTIMUM = {"method": "ties", "rank": 7, "rate": 0.02, "density": 0.3, "weight": 0.7}


def box(dimension=6):
    return Domain([Gene(f"g{i}") for i in range(dimension)], np.full(dimension, 0.4))


def numbers():
    """Floats, one of them by its logarithm, and ints, one of them with a single level."""
    return Domain(
        [
            Gene("weight"),
            Gene("rate", 1e-4, 1.0, log=True),
            Gene("rank", 2, 9, kind="int"),
            Gene("one", 3, 3, kind="int"),
            Gene("other", -1.0, 2.0),
        ]
    )


def choices():
    """Nothing continuous."""
    return Domain(
        [
            Gene("method", kind="categorical", choices=("linear", "ties", "dare")),
            Gene("rank", 2, 9, kind="int"),
            Gene("on", kind="categorical", choices=(False, True)),
        ]
    )


def mixed():
    """Float, log, int and categorical genes, and one that exists for one method only."""
    return Domain(
        [
            Gene("weight", 0.0, 1.5),
            Gene("method", kind="categorical", choices=("linear", "ties", "dare")),
            Gene("density", 0.1, 1.0, when=(Condition("method", ("ties",)),)),
            Gene("rate", 1e-4, 1.0, log=True),
            Gene("rank", 2, 9, kind="int"),
            Gene("on", 0, 1, kind="int"),
        ]
    )


def methods():
    """A space of weights that chooses its method in each group, and its experts."""
    weights = {
        "method": ["linear", "ties"],
        "methods_per": "group",
        "choose_experts": True,
        "genes": {"weight": [0, 1.5], "density": [0.2, 1]},
    }
    tensors = [TensorSpec(f"layers.{i}.w", (4, 4), i, "mlp", "w", None) for i in range(2)]
    layout = Layout("Tiny", 2, "layers", tuple(tensors), {}, 8)
    digests = {"base": "0", "math": "1", "lang": "2"}
    return WeightSpace(SpaceConfig(weights=weights), layout, digests, seed=1)


DOMAINS = {"box": box, "numbers": numbers, "choices": choices, "mixed": mixed, "methods": methods}


def build(name, domain=None, seed=0, **options):
    return build_optimizer(OptimizerConfig(kind=name, **options), domain or box(), seed)


def sphere(genome):
    return Scores(value=-float(np.sum((genome - 0.7) ** 2)), se=0.0, n=1)


def score(domain, genome):
    """How near the natural values are to OPTIMUM; genes that it does not name are for free."""
    loss = 0.0
    for gene in domain.genes:
        value = domain.params(genome).get(gene.name)
        if gene.name not in OPTIMUM or value is None:
            continue
        if gene.kind == "categorical":
            loss += 0.3 * (value != OPTIMUM[gene.name])
        else:
            loss += (gene.unit(value) - gene.unit(OPTIMUM[gene.name])) ** 2
    return Scores(value=-float(loss), se=0.0, n=1)


def run(optimizer, record, asks, measure=None):
    """One worker: ask, score, tell; every fifth candidate fails."""
    measure = measure or (lambda genome: sphere(genome))
    for index in range(len(record), asks):
        proposal = optimizer.ask(index)
        scores = None if index % 5 == 4 else measure(proposal.genome)
        optimizer.tell(proposal, scores)
        record.append((proposal, scores))
    return record
