"""DARE with TIES' sign election."""

from evomerge.methods.core.combine import product, sign_election
from evomerge.methods.core.sparsify import dare

dare_ties = product(
    "dare_ties",
    dare,
    sign_election,
    reference="Yu et al. 2024, arXiv:2311.03099, with TIES' sign election",
    about="""Drop entries at random, rescale by 1/density, then elect signs and merge as TIES does.

    `rescale: l1` gives the survivors the L1 norm of τᵢ instead, as mergekit does.
    """,
)
