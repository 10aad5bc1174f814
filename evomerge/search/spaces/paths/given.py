"""A path that is known, so that the weights along it can be searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.search.spaces.genes import Value
from evomerge.search.spaces.paths.base import MERGED, Layer, LayerPaths, path_kind


@path_kind("given")
class Given(LayerPaths):
    """One path, written down: the layers of the searched merge in this order and number.

    It has no genes of its own; what is searched are the weights along it.

    Example: `kind: given, layers: [0, 1, 1, 2], scales: [1, 1, 0.5, 1]`
    """

    def __init__(
        self,
        models: Sequence[str],
        depth: int,
        *,
        layers: list[int],
        scales: list[float] | None = None,
    ) -> None:
        """Take the path.

        Args:
            layers: the layers' numbers, from 0; in a campaign with stages, also the name of an
                earlier stage that searched a path.
            scales: the factors of what enters each layer; by default 1.

        Raises:
            InputError: weights are not searched, a layer that the models have not, or another
                number of scales than of layers.
        """
        super().__init__(models, depth)
        if MERGED not in models:
            raise InputError(
                "space.path: kind given has nothing to search; give space.weights, which are "
                "searched along it"
            )
        for layer in layers:
            if not 0 <= layer < depth:
                raise InputError(
                    f"space.path.layers: {layer} is no layer; the models have 0 to {depth - 1}"
                )
        if not layers or (scales is not None and len(scales) != len(layers)):
            raise InputError("space.path: give one layer or more, and as many scales or none")
        self.outside = MERGED
        given = scales or [1.0] * len(layers)
        self.scaled = any(scale != 1 for scale in given)
        self._layers = [Layer((MERGED,), n, s) for n, s in zip(layers, given, strict=True)]
        self._begin([], np.empty(0), {MERGED: np.empty(0)})

    @override
    def layers(self, params: Mapping[str, Value]) -> list[Layer]:
        return self._layers
