"""Model breadcrumbs: task vectors without their largest and their smallest entries."""

from evomerge.methods.core import sparsify
from evomerge.methods.core.combine import product, weighted_sum

breadcrumbs = product(
    "breadcrumbs",
    sparsify.breadcrumbs,
    weighted_sum,
    reference="Davari & Belilovsky 2023, arXiv:2312.06795, eq. 2",
    about="""Drop the largest entries of each τᵢ and then the smallest: θ₀ + λ Σ wᵢ(mᵢ ⊙ τᵢ).

    Of |τᵢ| the top `gamma` share is dropped. int(density·n) entries remain, per tensor; where γ
    and density exceed 1 together, fewer large ones are dropped. Of tied entries the lower index
    counts as larger.
    """,
)
