"""SLERP recombination (M2N2, arXiv:2508.16204, eq. 3): a child's coefficients from its parents'.

A child is v·a "plus" (1 − v)·b along the great circle, with v = `weight` before the split and 1 −
`weight` after; both sides are scalar multiples of the parents, which three inner products decide.
SLERP gives scalar multiples of its parents, so every descendant of the sources is, in each group of
tensors, a linear combination of them (the closure is checked in
tests/search/spaces/test_slerp_recombination.py). A member of an archive is its coefficients; the
angle between two members follows from the sources' K×K inner products, computed once per campaign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.common.digest import content_digest
from evomerge.judging.scores import Values
from evomerge.recipe import BASE
from evomerge.search.spaces.genes import Gene, Genome

if TYPE_CHECKING:
    from evomerge.models.layout import TensorSpec
    from evomerge.models.source import Source


def slerp_factors(dot: Values, aa: Values, bb: Values, share: Values) -> tuple[Values, Values]:
    """Compute the multiples of a and b in their spherical mean, `share` of it a's.

    sin(share·Ω)/sin Ω and sin((1−share)·Ω)/sin Ω with Ω the angle between a and b (Shoemake 1985);
    the shares themselves where sin Ω ≤ 1e-6 or one of them is zero.

    Args:
        dot: ⟨a, b⟩; `aa`, `bb`: ⟨a, a⟩ and ⟨b, b⟩; all broadcast together with `share`.

    Returns:
        Two float64 arrays of the broadcast shape.
    """
    # 1. the angle Ω; a vector of length 0 has none
    share = np.asarray(share, dtype=float)
    length = np.sqrt(np.asarray(aa, float) * np.asarray(bb, float))
    known = length > 0
    cosine = np.clip(np.where(known, dot, 1) / np.where(known, length, 1), -1, 1)
    omega = np.arccos(cosine)
    # 2. sin(share·Ω)/sin Ω, or the share itself where there is no angle
    sine = np.sin(omega)
    curved = sine > 1e-6
    sine = np.where(curved, sine, 1)
    first = np.where(curved, np.sin(share * omega) / sine, share)
    second = np.where(curved, np.sin((1 - share) * omega) / sine, 1 - share)
    return first, second


def slerp_at(
    a: NDArray[np.float32], b: NDArray[np.float32], split: int, weight: float
) -> NDArray[np.float32]:
    """Recombine two flat weight vectors of one shape, in their dtype.

    One Ω over the whole vector, as in the authors' code (the paper: one for each side).
    """
    shares = np.array([weight, 1 - weight])
    first, second = slerp_factors(np.dot(a, b), np.dot(a, a), np.dot(b, b), shares)
    child = np.empty_like(a)
    for side, (f, s) in zip(
        (slice(None, split), slice(split, None)), zip(first, second, strict=True), strict=True
    ):
        np.multiply(a[side], a.dtype.type(f), out=child[side])
        child[side] += b[side] * b.dtype.type(s)
    return child


def owners_of_coefficients(
    method: str, searched: Set[str], settings: Mapping[str, object], experts: Sequence[str]
) -> tuple[str | None, ...] | None:
    """Whose coefficients a method's genes are, where its merge is linear in them; else None.

    `task_arithmetic` with its weights searched and λ = 1 is Σ wᵢτᵢ over the experts; `linear` with
    weights and base_weight searched is Σ wᵢθᵢ over base (None) and experts; neither normalized.

    Args:
        method: its name.
        searched: the parameters that are genes.
        settings: the values of its shared parameters where they are no genes.
        experts: in the order of the sources.
    """
    if settings.get("normalize", False):
        return None
    if method == "task_arithmetic" and searched == {"weight"} and settings["lambda"] == 1:
        return tuple(experts)
    if method == "linear" and searched == {"weight", "base_weight"}:
        return (None, *experts)
    return None


@dataclass
class SourceGrams:
    """The Grams of a campaign's sources, computed when they are first asked for.

    Attributes:
        sources: name → source, the base first.
        groups: the tensors of every tuned group.
        task_vectors: whether experts count by their difference to the base.
        folder: where they are kept for the next start, if anywhere; rebuilt when missing, damaged,
            or of other weights.
    """

    sources: Mapping[str, Source]
    groups: Sequence[Sequence[TensorSpec]]
    task_vectors: bool
    folder: Path | None = None

    @cached_property
    def values(self) -> Values:
        """Shape (groups, K, K), float64; K counts the base unless task vectors are meant."""
        from evomerge.materialize.statistics import grams  # torch comes with it

        path = self.folder / "grams.npz" if self.folder else None
        found = grams.remembered(path, self.key) if path else None
        if found is None:
            found = grams.grams(self.sources, self.groups, task_vectors=self.task_vectors)
            if path:
                grams.remember(path, self.key, found)
        return found

    @property
    def key(self) -> str:
        """A digest of everything that they depend on: contents, groups, and what is multiplied."""
        return content_digest(
            [
                [[name, source.digest] for name, source in self.sources.items()],
                [[spec.name for spec in group] for group in self.groups],
                self.task_vectors,
            ]
        )


class LinearCombinations:
    """SLERP of genomes whose genes are linear coefficients of the sources, group by group.

    Each group of tensors is joined along its own great circle (as the paper does on each side of
    the split; the authors' code takes one Ω over the whole model). A gene out of its bounds is
    clipped: the child then is not quite on the circle, but still the linear combination that its
    genome says, which is what is scored, recorded and bred from, so that nothing drifts. With
    bounds that leave room beyond [0, 1], clipping is rare.
    """

    def __init__(
        self,
        owners: Sequence[str | None],
        blocks: NDArray[np.int64],
        genes: Sequence[Gene],
        grams: SourceGrams | None,
    ) -> None:
        """`owners`: which source each coefficient of a group belongs to, None for the base; length
        K. `blocks`: genome indices of each group's coefficients, shape (groups, K). `genes`: the
        space's, for their bounds. `grams`: of these groups; without, `recombine` cannot be called.
        """
        self.owners = tuple(owners)
        self.grams = grams
        self._blocks = blocks
        self._low = np.array([gene.low for gene in genes])[blocks]
        self._high = np.array([gene.high for gene in genes])[blocks]

    def recombine(self, a: Genome, b: Genome, split: int, weight: float) -> Genome:
        """The child: `weight` of a's side in groups that begin before genome index `split`,
        1 − `weight` in the others.

        Raises:
            ValueError: there are no Grams.
        """
        # 1. each group's share of a, by its side of the split
        share = np.where(self._blocks.min(axis=1) < split, weight, 1 - weight)
        first, second = self._coefficients(a), self._coefficients(b)
        if self.grams is None:
            raise ValueError("no Grams: the space was built without sources")
        # 2. ⟨a, b⟩, ⟨a, a⟩, ⟨b, b⟩ of each group from coefficients and Grams
        grams = self.grams.values
        dot, aa, bb = (
            np.einsum("gi,gij,gj->g", left, grams, right)
            for left, right in ((first, second), (first, first), (second, second))
        )
        # 3. the child's coefficients (eq. 3)
        f, s = slerp_factors(dot, aa, bb, share)
        return self._genome(f[:, None] * first + s[:, None] * second)

    def seeds(self, sources: Iterable[str]) -> dict[str, Genome]:
        """Each source as a genome, by name: coefficient 1 for itself, 0 for the others (for the
        base: 0 for all where its own is none of them). Sources out of the bounds are left out.
        """
        found = {}
        for name in sources:
            values = np.zeros(self._blocks.shape)
            owner = None if name == BASE else name
            if owner in self.owners:
                values[:, self.owners.index(owner)] = 1
            if (values >= self._low).all() and (values <= self._high).all():
                found[name] = self._genome(values)
        return found

    def _genome(self, values: Values) -> Genome:
        """The genome of natural values of shape (groups, K), clipped to the bounds."""
        genome = np.empty(self._blocks.size)
        genome[self._blocks] = np.clip((values - self._low) / (self._high - self._low), 0, 1)
        return genome

    def _coefficients(self, genome: Genome) -> Values:
        """Natural values, shape (groups, K)."""
        return self._low + (self._high - self._low) * np.clip(genome[self._blocks], 0, 1)
