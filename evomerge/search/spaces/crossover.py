"""Spherical crossover with a split point (M2N2, arXiv:2508.16204, eq. 3), as multiples of parents.

A child is v·a "plus" (1 − v)·b along the great circle, with v = `weight` before the split and
1 − `weight` after. Both sides therefore are scalar multiples of the parents, and everything that
decides the scalars is three inner products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.scores import Values


def slerp_factors(dot: Values, aa: Values, bb: Values, share: Values) -> tuple[Values, Values]:
    """The multiples of a and b in their spherical mean, `share` of it a's.

    sin(share·Ω)/sin Ω and sin((1−share)·Ω)/sin Ω with Ω the angle between a and b (Shoemake 1985);
    the shares themselves where sin Ω ≤ 1e-6 or one of them is zero.

    Args:
        dot: ⟨a, b⟩; `aa`, `bb`: ⟨a, a⟩ and ⟨b, b⟩; all broadcast together with `share`.

    Returns:
        Two float64 arrays of the broadcast shape.
    """
    share = np.asarray(share, dtype=float)
    length = np.sqrt(np.asarray(aa, float) * np.asarray(bb, float))
    known = length > 0
    cosine = np.clip(np.where(known, dot, 1) / np.where(known, length, 1), -1, 1)
    omega = np.arccos(cosine)
    sine = np.sin(omega)
    curved = sine > 1e-6
    sine = np.where(curved, sine, 1)
    first = np.where(curved, np.sin(share * omega) / sine, share)
    second = np.where(curved, np.sin((1 - share) * omega) / sine, 1 - share)
    return first, second


def slerp_at(
    a: NDArray[np.float32], b: NDArray[np.float32], split: int, weight: float
) -> NDArray[np.float32]:
    """The child of two flat weight vectors of one shape, in their dtype.

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
