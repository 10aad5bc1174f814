"""DELLA: pruning that drops small entries rather, and TIES' sign election."""

from evomerge.methods.core import sparsify
from evomerge.methods.core.combine import product, sign_election

della = product(
    "della",
    sparsify.della,
    sign_election,
    reference="Deep et al. 2024, arXiv:2406.11617 (MagPrune), with TIES' sign election",
    about="""Drop entries as `della_linear` does, then elect signs and merge as TIES does.""",
)
