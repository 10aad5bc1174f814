"""What methods make of calibration data: entries cut to slices, and trims by Fisher saliency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from evomerge.methods.core.magnitude_histograms import MagnitudeHistogram, magnitude_histogram
from evomerge.methods.core.slices import Entries
from evomerge.methods.core.trim import Trim, trims
from evomerge.methods.core.view import Tensor, View


def fishers_of(view: View) -> list[Entries]:
    """Return each expert's diagonal Fisher, entry by entry; none where one of them has none."""
    return [Entries(fisher) for fisher in view.calibrated.get("fisher", ())]


class FisherTrim(NamedTuple):
    """The entries of a task vector with the largest saliency F ⊙ τ² (FFG).

    Attributes:
        fisher: F, entry by entry.
        scale: what brings F to the size of 1.
        trim: of the saliency by magnitude.
    """

    fisher: Any
    scale: Any
    trim: Any

    def keep(self, tau: Tensor) -> Tensor:
        """Return a boolean mask over the slice that this was cut to."""
        kept: Tensor = self.trim.keep(_saliency(tau, self.fisher, self.scale))
        return kept

    def of(self, tau: Tensor, at: Any = None, expert: int = 0) -> Tensor:
        """Return τ, and 0 where an entry is not kept."""
        import torch

        return torch.where(self.keep(tau), tau, 0.0)


def saliency_histogram(view: View, expert: int) -> MagnitudeHistogram:
    """Count an expert's F ⊙ τ² by magnitude, or its τ where there is no F."""
    if "fisher" not in view.calibrated:
        return magnitude_histogram(view, expert)
    return magnitude_histogram(_saliency_view(view, expert), 0)


def fisher_trims(
    view: View, density: Sequence[float], statistics: Sequence[MagnitudeHistogram] | None = None
) -> list[FisherTrim] | list[Trim]:
    """Find each expert's `density` share of entries of largest F ⊙ τ²; by |τ| where there is no F.

    Args:
        view: with `fisher` among what is calibrated.
        density: one share per expert.
        statistics: one `saliency_histogram` per expert, where they are known.
    """
    fishers = fishers_of(view)
    if not fishers:
        return trims(view, density=density, statistics=statistics)
    found = []
    for i, (fisher, share) in enumerate(zip(fishers, density, strict=True)):
        known = None if statistics is None else [statistics[i]]
        [trim] = trims(_saliency_view(view, i), density=[share], statistics=known)
        found.append(FisherTrim(fisher, _scale(view, i), trim))
    return found


def roots_of(view: View, scale: float) -> list[Entries]:
    """Return the square root of each expert's F · scale, correctly rounded, entry by entry.

    torch's own may differ in the last bit where a slice or compiled code takes it.
    """
    import numpy as np
    import torch

    found = []
    for fisher in view.calibrated.get("fisher", ()):
        root = np.sqrt((fisher * scale).cpu().numpy())
        found.append(Entries(torch.from_numpy(root).to(fisher.device)))
    return found


def _saliency(tau: Tensor, fisher: Tensor, scale: float | Tensor) -> Tensor:
    """Compute F ⊙ τ² in units in which float32 has room for it."""
    return (fisher * scale).to(tau.dtype) * tau * tau


def _scale(view: View, expert: int) -> float:
    """Return the power of two that brings an expert's F to the size of 1: it rounds nothing."""
    size = view.rms[expert]
    return 2.0 ** -round(math.log2(size)) if 0 < size < math.inf else 0.0


def _saliency_view(view: View, expert: int) -> View:
    """Hold one expert's F ⊙ τ² as if it were a task vector."""
    import torch

    held = torch.empty(view.base.numel(), dtype=view.dtype, device=view.base.device)
    scale = _scale(view, expert)
    for part in view.parts():
        [tau] = view.taus(part, [expert])
        held[part] = _saliency(tau, view.calibrated["fisher"][expert][part], scale)
    zeros = torch.zeros(held.numel(), dtype=torch.int8, device=held.device)
    return View(zeros, [held], view.dtype, view.block, view.run, view.shape)
