"""WUDI: the update that disturbs each expert's inputs least, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.methods import Lambda, Tensor, merge_method
from evomerge.methods.core.decompositions import ON_ONE_THREAD
from evomerge.methods.core.merged_update import Scaled, of_sources


def _wudi(taus: Sequence[Tensor]) -> Tensor:
    import torch

    from evomerge.common.accelerator import as_float64

    # 1. the experts' inputs, as their task vectors tell of them: τᵢᵀτᵢ/‖τᵢ‖²
    wide = [as_float64(tau) for tau in taus]
    grams = [tau.mT @ tau for tau in wide]
    energies = [gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for gram in grams]
    normed = [g / torch.where(e > 0, e, 1.0) for g, e in zip(grams, energies, strict=True)]
    # 2. the minimum of the quadratic, by its normal equations
    pulled = [tau @ gram for tau, gram in zip(wide, normed, strict=True)]
    inverse = torch.linalg.pinv(sum(normed[1:], normed[0]), hermitian=True)
    return (sum(pulled[1:], pulled[0]) @ inverse).to(taus[0])


_WUDI = of_sources(_wudi)


@merge_method(
    reference="Cheng et al. 2025, arXiv:2503.08099, the minimum of eq. 11 in closed form",
    joint=_WUDI[0],
    measure=_WUDI[1],
    relative=True,
    differentiable_in=("lambda",),
    changes=[ON_ONE_THREAD],
    copies=6,
    squares=5,
)
def wudi(
    base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0, measured: Scaled
) -> Tensor:
    """Add the update that disturbs each expert's inputs least: θ₀ + λm.

    m, which minimises Σ ‖(m − τᵢ)τᵢᵀ‖²/‖τᵢ‖², is (Σ τᵢτᵢᵀτᵢ/‖τᵢ‖²)(Σ τᵢᵀτᵢ/‖τᵢ‖²)⁺ with
    Frobenius norms, in float64.
    """
    return measured.added_to(base)
