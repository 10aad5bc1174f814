"""DELLA's pruning (MagPrune): small entries are dropped rather; then a weighted sum."""

from evomerge.methods.core.combine import product, weighted_sum
from evomerge.methods.core.sparsify import della

della_linear = product(
    "della_linear",
    della,
    weighted_sum,
    reference="Deep et al. 2024, arXiv:2406.11617 (MagPrune), with task arithmetic",
    about="""Drop entries at random, small ones more often; rescale each; then task arithmetic.

    Within a row (last dimension) the probability p of surviving grows linearly with the rank of
    |τ|, from density − ε to density + ε (the paper: ± ε/2). Survivors are divided by p, or brought
    to the L1 norm of τᵢ as mergekit does. ε is lessened where p would leave [0, 1].
    """,
)
