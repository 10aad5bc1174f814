"""TIES: the largest entries of each task vector, and of these the elected sign's."""

from evomerge.methods.core.combine import product, sign_election
from evomerge.methods.core.sparsify import magnitude

ties = product(
    "ties",
    magnitude,
    sign_election,
    reference="Yadav et al. 2023, arXiv:2306.01708, algorithm 1",
    about="""Trim, elect sign, merge disjointly.

    Each τᵢ keeps its largest `density` share by |τ|, per tensor (the paper trims over the whole
    model). The elected sign is that of Σ wᵢτᵢ (zero counts as positive). Entries that agree with it
    are summed with their weights and, with `normalize`, divided by the weights that took part.
    """,
)
