"""Frankenmerges: ranges of layers of any models, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.search.spaces.genes import Gene, Genome, Value
from evomerge.search.spaces.paths.base import MERGED, Layer, LayerPaths, path_kind


@path_kind("slices")
class Slices(LayerPaths):
    """Ordered ranges of layers, as in mergekit's passthrough slices: overlaps and repeats allowed.

    A range has a source, a start and a length. The first starts at layer 0 and the last ends at the
    last layer; a range between them may be empty. Embeddings, final norm and head are `outside`'s.

    Example: `kind: slices, sources: [math, lang], outside: math, count: 3, length: [4, 16],
    max_depth: 48`
    """

    def __init__(
        self,
        models: Sequence[str],
        depth: int,
        *,
        outside: str | None = None,
        sources: list[str] | None = None,
        count: int = 3,
        length: tuple[int, int] | None = None,
        max_depth: int | None = None,
    ) -> None:
        """Set the ranges up.

        Args:
            outside: the model of embeddings, final norm and head; by default the searched merge
                or, without one, the first of `sources`.
            sources: models to take layers from; by default the searched merge and every expert.
            count: how many ranges, 2 or more.
            length: [low, high] of the ranges' lengths, but for the last; by default [0, depth].
            max_depth: the most layers, by default twice the models' depth. Longer paths lose the
                ends of their middle ranges, then of the first, and then the beginning of the last.

        Raises:
            InputError: no such model, too few ranges, bounds outside the depth.
        """
        super().__init__(models, depth)
        merged = [MERGED] if MERGED in self.models else []
        experts = [name for name in self.models[1:] if name != MERGED]
        self._from = [self._model(n, "sources") for n in sources or [*merged, *experts]]
        if len(set(self._from)) < len(self._from):
            raise InputError("space.path.sources: give each model once")
        self.outside = self._model(outside or [*merged, *self._from][0], "outside")
        if count < 2:
            raise InputError(f"space.path.count is {count}; give 2 or more")
        self._max_depth = 2 * depth if max_depth is None else max_depth
        if self._max_depth < 2:
            raise InputError(f"space.path.max_depth is {self._max_depth}; give 2 or more")
        self._count = count
        self._length = self._bounds(length, (0, depth), "length")
        genes = list(self._enumerate())
        seeds = {name: self._straight(name, genes) for name in self._from}
        first = self.outside if self.outside in seeds else self._from[0]
        self._begin(genes, seeds[first], seeds)

    def _enumerate(self) -> Iterator[Gene]:
        low, high = self._length
        for index in range(self._count):
            if len(self._from) > 1:
                yield Gene(f"path.{index}.source", kind="categorical", choices=tuple(self._from))
            if index > 0:
                yield Gene(f"path.{index}.start", 0, self.depth - 1, "int")
            if index < self._count - 1:
                yield Gene(f"path.{index}.length", max(low, int(index == 0)), max(high, 1), "int")

    def _straight(self, name: str, genes: Sequence[Gene]) -> Genome:
        """One model's own path, in ranges of about equal length."""
        edges = [round(i * self.depth / self._count) for i in range(self._count + 1)]
        values: dict[str, Value] = {}
        for index in range(self._count):
            values[f"path.{index}.source"] = name
            values[f"path.{index}.start"] = edges[index]
            values[f"path.{index}.length"] = edges[index + 1] - edges[index]
        return np.array([gene.unit(values[gene.name]) for gene in genes])

    @property
    @override
    def cuts(self) -> Sequence[int]:
        owners = [gene.name.split(".")[1] for gene in self.genes]
        return [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]

    @override
    def layers(self, params: Mapping[str, Value]) -> list[Layer]:
        """The path: the layers of the ranges in their order."""
        ranges = [self._range(index, params) for index in range(self._count)]
        _shorten(ranges, self._max_depth)
        return [
            Layer((str(params.get(f"path.{index}.source", self._from[0])),), layer)
            for index, span in enumerate(ranges)
            for layer in span
        ]

    def _range(self, index: int, params: Mapping[str, Value]) -> range:
        start = int(params.get(f"path.{index}.start", 0))
        length = int(params.get(f"path.{index}.length", self.depth))
        return range(start, min(start + length, self.depth))


def _shorten(ranges: list[range], most: int) -> None:
    """Cut what is too much: ends of the middle ranges, of the first, the beginning of the last."""
    for index in (*range(len(ranges) - 2, -1, -1), len(ranges) - 1):
        excess = sum(map(len, ranges)) - most
        span = ranges[index]
        if excess > 0 and index == len(ranges) - 1:
            ranges[index] = span[min(excess, len(span) - 1) :]
        elif excess > 0:
            ranges[index] = span[: max(len(span) - excess, index == 0)]
