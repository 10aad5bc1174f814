"""Task arithmetic: a weighted sum of whole task vectors."""

from evomerge.methods.core.combine import product, weighted_sum
from evomerge.methods.core.sparsify import none

task_arithmetic = product(
    "task_arithmetic",
    none,
    weighted_sum,
    reference="Ilharco et al. 2023, arXiv:2212.04089",
    about="""Add weighted task vectors to the base: θ₀ + λ Σ wᵢτᵢ; `normalize` divides by Σ wᵢ.""",
)
