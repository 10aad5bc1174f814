"""EvoLLM's data-flow space: all layers of all models in a row, repeated, each on or off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.search.spaces.genes import Condition, Gene, Value
from evomerge.search.spaces.paths.base import MERGED, Layer, LayerPaths, path_kind


@dataclass(frozen=True)
class _Place:
    """One slot of the row, with the names of its genes."""

    model: str
    layer: int
    on: str
    scale: str


@path_kind("indicator")
class Indicator(LayerPaths):
    """EvoLLM's data-flow slots (Akiba et al. 2024, arXiv:2403.13187, section 3.2).

    The layers of model `a`, then those of the other models, and all this `repeats` times: a gene
    for each slot says whether the path takes it. The path begins with a's first and ends with a's
    last layer, and embeddings, final norm and head are a's; in the first repetition those two have
    no slots. The search begins at a's own path, as the paper's does.

    With `scales`, a slot has a gene for its input scale too, which exists where the slot is on and
    counts where the path comes from anywhere but the model's layer before. The paper has one scale
    for each pair of layers, M² of them; of those a path meets one for each slot.

    Example: `kind: indicator, a: math, others: [lang], repeats: 2, scales: [0.8, 1.2],
    max_depth: 40`
    """

    def __init__(
        self,
        models: Sequence[str],
        depth: int,
        *,
        a: str | None = None,
        others: list[str] | None = None,
        repeats: int = 3,
        scales: tuple[float, float] | None = None,
        max_depth: int | None = None,
    ) -> None:
        """Set the row up.

        Args:
            a: model A; by default the searched merge, and needed where weights are not searched.
            others: the models beside it; by default every expert.
            repeats: how often the row of all models' layers is repeated.
            scales: [low, high] of input scales. A checkpoint cannot be written of a path with
                scales, except on its first layer.
            max_depth: the most slots; those beyond are left out.

        Raises:
            InputError: no such model, one twice, too few layers or repetitions, bounds that cross.
        """
        super().__init__(models, depth)
        if a is None and MERGED not in models:
            raise InputError(
                "space.path.a: name the model that gives the path's ends, embeddings and head; "
                f"one of {', '.join(models)}"
            )
        self.outside = self._a = self._model(a or MERGED, "a")
        row = [self._a, *self._others(others)]
        _check(depth, repeats, scales, max_depth)
        self._inner = None if max_depth is None else max_depth - 2
        self._places = list(_places(row, depth, repeats))
        self._scales = scales
        self.scaled = scales is not None
        start = {
            place.on: int(place.on.startswith("path.1.") and place.model == self._a)
            for place in self._places
        }
        genes = list(self._enumerate())
        initial = np.array([gene.unit(start.get(gene.name, 1)) for gene in genes])
        self._begin(genes, initial, {self._a: initial})

    def _others(self, given: list[str] | None) -> list[str]:
        if given is None:
            return [name for name in self.models[1:] if name not in (self._a, MERGED)]
        for name in given:
            self._model(name, "others")
            if name == self._a or given.count(name) > 1:
                raise InputError(f"space.path.others: {name} stands twice; give each model once")
        return given

    def _enumerate(self) -> Iterator[Gene]:
        for place in self._places:
            yield Gene(place.on, 0, 1, "int")
            # the first slot follows a's first layer, where a scale does not count
            if self._scales and place is not self._places[0]:
                yield Gene(place.scale, *self._scales, when=(Condition(place.on, (1,)),))
        if self._scales:
            yield Gene("path.end.scale", *self._scales)

    @property
    @override
    def cuts(self) -> Sequence[int]:
        return [i for i, gene in enumerate(self.genes) if not gene.when]

    @override
    def layers(self, params: Mapping[str, Value]) -> list[Layer]:
        """The path: a's first layer, the slots that are on, a's last layer."""
        chosen = [place for place in self._places if params[place.on] == 1][: self._inner]
        path = [Layer((self._a,), 0)]
        end = _Place(self._a, self.depth - 1, "", "path.end.scale")
        for place in [*chosen, end]:
            last = path[-1]
            follows = last.models == (place.model,) and last.layer == place.layer - 1
            scale = 1.0 if follows else float(params.get(place.scale, 1.0))
            path.append(Layer((place.model,), place.layer, scale))
        return path


def _places(row: Sequence[str], depth: int, repeats: int) -> Iterator[_Place]:
    width = len(str(depth - 1))
    for repetition in range(1, repeats + 1):
        for model in row:
            for layer in range(depth):
                if repetition == 1 and model == row[0] and layer in (0, depth - 1):
                    continue  # the path's ends
                label = f"path.{repetition}.{model}.{layer:0{width}d}"
                yield _Place(model, layer, f"{label}.on", f"{label}.scale")


def _check(
    depth: int, repeats: int, scales: tuple[float, float] | None, max_depth: int | None
) -> None:
    if depth < 2:
        raise InputError("space.path: the models have one layer; this kind needs two")
    if repeats < 1:
        raise InputError(f"space.path.repeats is {repeats}; give 1 or more")
    if scales is not None and not scales[0] < scales[1]:
        raise InputError(f"space.path.scales: bounds {list(scales)} cross; write [low, high]")
    if max_depth is not None and max_depth < 2:
        raise InputError(f"space.path.max_depth is {max_depth}; the two ends alone are 2")
