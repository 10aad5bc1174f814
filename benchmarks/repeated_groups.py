"""How much of a candidate a worker need not merge, for it lies in its model already.

Run `python benchmarks/repeated_groups.py`. No model is read: optimizers propose candidates of the
quickstart's models in several spaces, and are told how near each is to the optima of made-up items.
Each candidate is written into a worker's resident model by a kernel that does nothing, so that what
is counted is what a worker finds there: tensors of the same method, coefficients, experts and seed.
Printed is the share of parameters that were found, in the mean over candidates after the first 20,
with one worker; with several, each has the last of its own candidates.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from typing_extensions import override

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.judging.scores import Scores
from evomerge.materialize.feed import Target
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.search.optimizers.build import build_optimizer

CAMPAIGN = Path(__file__).parents[1] / "search_spaces" / "quickstart" / "quickstart.yaml"
LAYER = "space.weights={method: %s, granularity: %s, genes: {weight: [0, 1.5]%s}}"
SPACES = {
    "TIES, genes a model": [LAYER % ("ties", "model", ", density: [0.2, 1]")],
    "task arithmetic, a gene a layer": [LAYER % ("task_arithmetic", "layer", "")],
    "TIES, genes a layer": [LAYER % ("ties", "layer", ", density: [0.2, 1]")],
    "TIES, genes a module": [LAYER % ("ties", "module", ", density: [0.2, 1]")],
    "method chosen a layer": [
        "space.weights={method: [linear, ties, slerp], methods_per: group, granularity: layer}"
    ],
    "layers swapped": [
        "space.weights=null",
        "space.path={kind: layer_swap, outer: base, inner: math}",
    ],
}
"""Name → the campaign's overrides."""
OPTIMIZERS = {
    "cma": "{kind: cma, population: 10}",
    "ga": "{kind: ga, population: 10}",
    "m2n2": "{kind: m2n2, population: 10}",
    "m2n2, mutation: 0": "{kind: m2n2, population: 10, mutation: 0}",
    "map_elites": "{kind: map_elites}",
    "nsga2": "{kind: nsga2, population: 10}",
    "pso": "{kind: pso, particles: 10}",
    "de": "{kind: de, population: 10}",
    "random": "{kind: random}",
    "optuna:TPESampler": "{kind: 'optuna:TPESampler'}",
}
"""Name → the section `optimizer`."""
FIRST = 20
"""Candidates that are not counted."""
ITEMS = 60


class Idle(Kernel):
    """Merges nothing."""

    @override
    def fill_all(self, targets: Sequence[Target], seed: int) -> None:
        return None


def made_up_scores(genome: np.ndarray, optima: np.ndarray) -> Scores:
    """Return scores of items of two tasks, by how near the genome is to each item's optimum."""
    values = np.exp(-4 * np.square(genome - optima).mean(1))
    items = dict(zip(("first", "second"), np.split(values, 2), strict=True))
    metrics = {task: float(own.mean()) for task, own in items.items()}
    return Scores(float(values.mean()), 0.0, len(values), items=items, metrics=metrics)


def share_kept(overrides: list[str], optimizer: str, candidates: int) -> float:
    """Return the share of parameters that candidates find in the model, in the mean."""
    config = load_campaign(CAMPAIGN, [*overrides, f"optimizer={optimizer}"])
    setup = prepare(config, unread=True)
    search = build_optimizer(config.optimizer, setup.space, 0)
    resident = Resident(setup.models.layout, Idle(setup.models.sources), torch.float32)
    # optima of items, around one of all
    rng = np.random.default_rng(0)
    middle, genes = rng.uniform(0.2, 0.8, len(setup.space.initial)), len(setup.space.initial)
    optima = middle + 0.2 * rng.normal(size=(ITEMS, genes))
    found = []
    for ask in range(candidates):
        proposal = search.ask(ask)
        resident.write(setup.space.decode(proposal.genome))
        if ask >= FIRST:
            found.append(resident.reuse["parameters kept"] / resident.reuse["parameters"])
        search.tell(proposal, made_up_scores(proposal.genome, optima))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=200)
    arguments = parser.parse_args()
    print("| optimizer |", " | ".join(SPACES), "|")
    print("|---" * (len(SPACES) + 1) + "|")
    for name, optimizer in OPTIMIZERS.items():
        shares = [
            f"{share_kept(overrides, optimizer, arguments.candidates):.0%}"
            for overrides in SPACES.values()
        ]
        print(f"| `{name}` |", " | ".join(shares), "|", flush=True)


if __name__ == "__main__":
    main()
