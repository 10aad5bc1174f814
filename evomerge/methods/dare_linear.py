"""DARE: task vectors with entries dropped at random, added up."""

from evomerge.methods.core.combine import product, weighted_sum
from evomerge.methods.core.sparsify import dare

dare_linear = product(
    "dare_linear",
    dare,
    weighted_sum,
    reference="Yu et al. 2024, arXiv:2311.03099, with task arithmetic",
    about="""Drop entries at random, rescale by 1/density, then task arithmetic.

    An entry of τᵢ survives with probability `density`. `rescale: l1` gives the survivors the L1
    norm of τᵢ instead, as mergekit does.
    """,
)
