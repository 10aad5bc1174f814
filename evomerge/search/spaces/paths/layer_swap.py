"""Layer swapping: the bottom and top of one model around the middle of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.search.spaces.genes import Gene, Genome, Value
from evomerge.search.spaces.paths.base import MERGED, Layer, LayerPaths, path_kind

_PAPER = {"bottom": 5 / 32, "bottom_transition": 1 / 32, "top_transition": 1 / 32, "top": 2 / 32}
"""The paper's numbers of layers for 32 in all, as shares of the depth."""


@path_kind("layer_swap")
class LayerSwap(LayerPaths):
    """Layer swapping (Bandarkar et al. 2024, arXiv:2410.01335): four whole numbers.

    Layers [0, bottom) and [L − top, L), embeddings and head are `outer`'s, the next
    `bottom_transition` and `top_transition` layers inwards the average of both models, and the rest
    `inner`'s. Where the widths overlap, outer layers go before transitions.

    Example: `kind: layer_swap, outer: lang, inner: math, bottom: [0, 4], top: [0, 4],
    transition: [0, 1]`
    """

    def __init__(
        self,
        models: Sequence[str],
        depth: int,
        *,
        outer: str,
        inner: str,
        bottom: tuple[int, int] | None = None,
        top: tuple[int, int] | None = None,
        transition: tuple[int, int] | None = None,
    ) -> None:
        """Take the bounds.

        Args:
            outer: the model whose layers lie at both ends.
            inner: the model whose layers lie between.
            bottom: [low, high] of the number of first layers of `outer`; by default up to half of
                the layers.
            top: [low, high] of the number of last layers of `outer`; by default up to half.
            transition: [low, high] of the layers inwards of each that are averaged; by default up
                to 2.

        Raises:
            InputError: no such model, the same twice, bounds outside the depth, or transitions of
                the searched merge, whose layers cannot be averaged again.
        """
        super().__init__(models, depth)
        self.outside = self._outer = self._model(outer, "outer")
        self._inner = self._model(inner, "inner")
        if outer == inner:
            raise InputError(f"space.path.inner: {inner} is outer too; name two models")
        half, narrow = (0, max(1, depth // 2)), (0, min(2, depth))
        transition = self._bounds(transition, narrow, "transition")
        if transition[1] > 0 and MERGED in (outer, inner):
            raise InputError(
                "space.path.transition: layers of the searched merge cannot be averaged with "
                "others; write transition: [0, 0]"
            )
        self._ranges = {
            "bottom": self._bounds(bottom, half, "bottom"),
            "bottom_transition": transition,
            "top_transition": transition,
            "top": self._bounds(top, half, "top"),
        }
        genes = [
            Gene(f"path.{name}", low, high, "int")
            for name, (low, high) in self._ranges.items()
            if low < high
        ]
        paper = {f"path.{name}": round(share * depth) for name, share in _PAPER.items()}

        def genome(values: Mapping[str, int]) -> Genome:
            return np.array([gene.unit(values.get(gene.name, 0)) for gene in genes])

        seeds = {outer: genome({"path.bottom": depth, "path.top": depth}), inner: genome({})}
        self._begin(genes, genome(paper), seeds)

    @override
    def layers(self, params: Mapping[str, Value]) -> list[Layer]:
        """The path, always of the models' own depth."""
        width = {
            name: int(params.get(f"path.{name}", low)) for name, (low, _) in self._ranges.items()
        }
        bottom, top = width["bottom"], self.depth - width["top"]
        inside = range(bottom + width["bottom_transition"], top - width["top_transition"])
        path = []
        for layer in range(self.depth):
            if layer < bottom or layer >= top:
                models: tuple[str, ...] = (self._outer,)
            else:
                models = (self._inner,) if layer in inside else (self._outer, self._inner)
            path.append(Layer(models, layer))
        return path
