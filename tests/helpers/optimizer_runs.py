"""Optimizers that are run as a campaign runs them."""

from __future__ import annotations

from domains import score

from evomerge.search.optimizers import optimizers

SMALL = {
    "de": {"population": 6},
    "map": {"interactions": False, "front": 12},
    "nsga2": {"population": 8},
    "nsga3": {"population": 8},
    "pso": {"particles": 5},
    "optuna:GPSampler": {"n_startup_trials": 3},
    "optuna:NSGAIISampler": {"population_size": 8},
    "optuna:NSGAIIISampler": {"population_size": 8},
    "optuna:TPESampler": {"n_startup_trials": 8},
}
"""Options with which an optimizer leaves its beginning within the asks of a test."""

OWN = [name for name in optimizers() if not name.startswith("optuna:")]

DESCENTS = ("adamerging", "expert_merging", "frank_wolfe", "gradient")
"""Those whose every ask is a descent, in which alone asks and seeds may differ: no genome moves
where none is made, as in these tests.
"""


def fly(optimizer, record, waiting, asked, asks, domain):
    """Three workers that finish out of order; every seventh candidate fails."""
    while asked < asks or waiting:
        while asked < asks and len(waiting) < 3:
            waiting.append(optimizer.ask(asked))
            asked += 1
        waiting.rotate(asked % 3)
        proposal = waiting.popleft()
        scores = None if proposal.ask % 7 == 6 else score(domain, proposal.genome)
        optimizer.tell(proposal, scores)
        record.append((proposal, scores))
        if len(record) == 25:
            return record, waiting, asked
    return record, waiting, asked
