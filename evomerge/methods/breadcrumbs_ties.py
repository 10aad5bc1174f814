"""Model breadcrumbs with TIES' sign election."""

from evomerge.methods.core import sparsify
from evomerge.methods.core.combine import product, sign_election

breadcrumbs_ties = product(
    "breadcrumbs_ties",
    sparsify.breadcrumbs,
    sign_election,
    reference="Davari & Belilovsky 2023, arXiv:2312.06795, with TIES' sign election",
    about="""Trim both ends as breadcrumbs does, then elect signs and merge as TIES does.""",
)
