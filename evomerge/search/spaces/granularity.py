"""Groups of tensors that are tuned together, at every granularity."""

from __future__ import annotations

from collections.abc import Iterator
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
