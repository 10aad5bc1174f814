"""RCP: a domain's changes are added to a reasoning model where they do not cost its reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from evomerge.methods import Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.slices import Entries


class Votes(NamedTuple):
    """What samples say of every entry.

    Attributes:
        reasoning: index of the expert whose reasoning is kept.
        sensitivity: mean (g ⊙ θ)² of its samples, entry by entry; none where there are no samples.
        samples: g ⊙ θ of each of the other's samples, entry by entry.
        penalty: λ of the penalty.
    """

    reasoning: int
    sensitivity: Sequence[Any]
    samples: Sequence[Any]
    penalty: float


def votes(view: View, *, reasoning: str, log_penalty: float) -> Votes:
    """Give the experts their roles."""
    first = 0 if reasoning == "first" else 1
    found = view.calibrated.get("gtheta")
    if found is None:
        return Votes(first, [], [], 0.0)
    own, other = found[first], found[1 - first]
    # one sample after the other: the same bytes on any number of threads
    sensitivity = sum((sample * sample for sample in own[1:]), own[0] * own[0]) / len(own)
    return Votes(first, [Entries(sensitivity)], [Entries(s) for s in other], 10**log_penalty)


@merge_method(
    reference="Yang et al. 2026, arXiv:2508.03140, with F = mean (g ⊙ θ)² as in the authors' code",
    experts=(2, 2),
    measure=votes,
    calibrated=["gtheta"],
    relative=True,
    differentiable_in=("scale", "lambda"),
    copies=2,
)
def rcp(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    reasoning: Literal["first", "second"] = "first",
    scale: Annotated[float, Range(0.0, 2.0)] = 1.0,
    log_penalty: Annotated[float, Range(0.0, 5.0)] = 3.0,
    lambda_: Lambda = 1.0,
    measured: Votes,
) -> Tensor:
    """Add a domain's task vector to a reasoning model where votes are for it: θ₀ + λ(τᵣ + s·m⊙τ_d).

    The first expert reasons, or the `second`, and the order of the experts counts. Each of the
    domain's samples t votes for an entry where g_t θ_d + 10^`log_penalty` F (θᵣ − θ_d)² ≤ 0, and m
    keeps entries with more votes for than against them. Tensors without samples are averaged.
    """
    import torch

    kept, added = experts[measured.reasoning] - base, experts[1 - measured.reasoning] - base
    if not measured.samples:
        return base + (kept + added) * (0.5 * lambda_)
    difference = kept - added
    cost = measured.sensitivity[0].to(kept.dtype) * difference * difference * measured.penalty
    count = torch.zeros_like(kept)
    for sample in measured.samples:
        count = count + torch.where(sample.to(kept.dtype) + cost <= 0, 1.0, -1.0)
    return base + (kept + torch.where(count > 0, added, 0.0) * scale) * lambda_
