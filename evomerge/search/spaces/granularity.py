"""Groups of tensors that are tuned together, at every granularity."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evomerge.config import WeightsConfig
from evomerge.models.layout import Layout, TensorSpec


@dataclass(frozen=True)
class Group:
    """Tensors that are tuned together: a label, and the (slot, group) pairs of their merges."""

    label: str
    targets: tuple[tuple[int | None, str], ...]

    def tensors(self, layout: Layout) -> list[TensorSpec]:
        """The tensors that its merges make, in `state_dict` order."""
        targets = set(self.targets)
        return [
            spec
            for spec in layout.tensors
            if not targets.isdisjoint((spec.layer, name) for name in spec.groups)
        ]


def tuned_groups(weights: WeightsConfig, layout: Layout) -> Iterator[Group]:
    """The groups of a granularity in depth order: embeddings, layers, final norm, head.

    Whatever the granularity, but for `model`, what lies outside the layers has groups of its own.
    """
    layers = range(layout.layers)
    outside = [Group(name, ((None, name),)) for name in layout.outside_groups]
    if weights.granularity == "model":
        targets = [group.targets[0] for group in outside]
        yield Group("model", (*targets, *((layer, "layer") for layer in layers)))
        return
    width = len(str(layout.layers - 1))
    yield from (group for group in outside if group.label == "embeddings")
    if weights.granularity == "block":
        for first in layers[:: weights.block]:
            block = layers[first : first + weights.block]
            label = f"layers_{first:0{width}d}_{block[-1]:0{width}d}"
            yield Group(label, tuple((layer, "layer") for layer in block))
    else:
        for layer in layers:
            yield from _of_layer(weights.granularity, layer, f"layer_{layer:0{width}d}", layout)
    yield from (group for group in outside if group.label != "embeddings")


def _of_layer(granularity: str, layer: int, label: str, layout: Layout) -> Iterator[Group]:
    if granularity == "layer":
        yield Group(label, ((layer, "layer"),))
        return
    tensors = layout.tensors_of_layer(layer)
    of_tensors = [tensor.suffix for tensor in tensors]
    present = {tensor.group for tensor in tensors}
    of_modules = [module for module in layout.modules if module in present]
    found = of_tensors if granularity == "tensor" else of_modules
    yield from (Group(f"{label}.{name}", ((layer, name),)) for name in found)


def pieces_by_importance(
    importance: Mapping[str, float], budget: float, power: float
) -> dict[str, int]:
    """Deal a budget of coefficients to tensors (Expert Merging++, arXiv:2509.25712).

    m_l = ⌊B I_l^κ / Σ_j I_j^κ⌋, with I scaled to sum 1. All is rounded to nine digits before
    it decides, so that neither a processor's nor a library's last bits do.

    Args:
        importance: label → I_l, not negative.
        budget: B, in units of the number of tensors.
        power: κ; at 0 all that changed count alike.

    Returns:
        label → m_l.
    """
    total = sum(importance.values())
    shares = {k: float(f"{v / total:.9g}") if v > 0 else 0.0 for k, v in importance.items()}
    powers = {label: share**power if share > 0 else 0.0 for label, share in shares.items()}
    scale = budget * len(powers) / (sum(powers.values()) or 1.0)
    return {label: int(float(f"{scale * value:.9g}")) for label, value in powers.items()}


def piece_label(index: int, count: int) -> str:
    """Name a piece in genes: `piece_03`."""
    return f"piece_{index:0{len(str(count - 1))}d}"


def without_piece(gene: str) -> str:
    """Return a gene's name as it would be if its tensor were not cut."""
    return re.sub(r"\.piece_\d+(?=\.|$)", "", gene)
