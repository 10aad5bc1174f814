"""Estimate merging: one made-up tensor of each kind is merged, and scaled to the model.

How many passes over memory a method makes, and what it holds, is known to the method alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from evomerge.materialize.kernel import COMPILED_ABOVE, Kernel
from evomerge.materialize.plan import TensorStep, plan
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.models.layout import Layout
from evomerge.models.source import Source
from evomerge.preflight.machine import MemoryMeter, best_of
from evomerge.recipe import BASE, Recipe

_ENTRIES = 1 << 23
"""Beyond every cache: more entries take as much longer as there are more."""
_COPIES = 64
_SIZES = tuple(1 << bits for bits in range(16, 25, 2))
"""Entries of matrices whose cost may grow faster than their entries, the smallest first."""
_LONG = 0.3
"""Seconds from which on a size tells what larger ones take."""
_SAMPLES = 6
"""Samples that made-up calibration data have."""
_STEEPEST = 1.5
"""The highest power of its entries with which a matrix's cost grows: with a cube of its side."""


@dataclass(frozen=True)
class MergeCost:
    """The cost of merging a whole recipe, or one made-up tensor.

    Attributes:
        seconds: each time.
        once: more seconds, the first time, for what the sources alone decide.
        bytes: memory beside sources, result and statistics.
        statistics: bytes of what the sources alone decide.
    """

    seconds: float
    once: float
    bytes: float
    statistics: float


def estimate_merging(
    recipe: Recipe,
    layout: Layout,
    dtypes: Mapping[str, torch.dtype],
    kernel: Kernel,
    compute: torch.dtype,
    device: str = "cpu",
) -> MergeCost:
    """Merge a made-up tensor of each kind that occurs, and scale by entries.

    Args:
        dtypes: of the recipe's sources, by name.
        kernel: of the worker, for its settings.
        compute: the dtype of the resident model.
        device: where it merges.
    """
    alike: dict[object, list[TensorStep]] = {}
    for step in plan(recipe, layout, dtypes):
        alike.setdefault(_kind(step), []).append(step)
    meter = MemoryMeter(device)
    kernel = replace(kernel, compiled=layout.parameters >= COMPILED_ABOVE)
    bench = _Bench(kernel, dtypes, compute, device)
    costs = [bench.cost(steps) for steps in alike.values()]
    del bench
    lasting = meter.left()  # compiled code, mostly
    return MergeCost(
        seconds=sum(cost.seconds for cost in costs),
        once=sum(cost.once for cost in costs),
        bytes=lasting + max(cost.bytes for cost in costs),
        statistics=sum(cost.statistics for cost in costs),
    )


def _kind(step: TensorStep) -> object:
    """A key that steps share when one of them tells the others' cost."""
    rule = step.rule
    how = (rule.method.name, rule.experts, rule.sparsify) if rule else step.source
    return how, None if _by_entry(step) else (step.tensor.shape, step.tensor.matrices)


def _by_entry(step: TensorStep) -> bool:
    """Say whether every entry costs the same, however many there are."""
    method = step.rule and step.rule.method
    return not method or (method.elementwise and method.joint is None)


class _Bench:
    """Merges made-up tensors and measures seconds and memory."""

    def __init__(
        self, kernel: Kernel, dtypes: Mapping[str, torch.dtype], compute: torch.dtype, device: str
    ) -> None:
        # One kernel for all, since what it compiles is its own.
        self._sources = {name: _MadeUpSource(dtype) for name, dtype in dtypes.items()}
        sources = cast(Mapping[str, Source], self._sources)
        self._kernel = replace(kernel, sources=sources, statistics=Statistics(limit=1 << 40))
        self._compute, self._device = compute, device
        self._made = 0

    def cost(self, steps: Sequence[TensorStep]) -> MergeCost:
        """The cost of all these steps, which are alike."""
        sizes = [math.prod(step.tensor.shape) for step in steps]
        if _by_entry(steps[0]):
            # Memory is that of the largest. Seconds are those of a tensor of their average size,
            # in turn with others so that none is in a cache.
            largest, size = (
                min(_ENTRIES, max(sizes)),
                max(1, min(_ENTRIES, sum(sizes) // len(sizes))),
            )
            found = self._measured(steps[0], (size,), math.ceil(min(_COPIES, _ENTRIES / size)))
            times = sum(sizes) / size
            return MergeCost(
                seconds=found.seconds * times,
                once=found.once * times,
                bytes=self._measured(steps[0], (largest,)).bytes,
                statistics=found.statistics * times,
            )
        # One matrix, in sizes that grow to its own, or until one takes long.
        tensor = steps[0].tensor
        shape = tensor.shape[-2:] if tensor.matrices > 1 else tensor.shape
        matrices, whole = len(steps) * tensor.matrices, math.prod(shape)
        tried: list[tuple[int, MergeCost]] = []
        for small in _smaller(shape):
            tried.append((math.prod(small), self._measured(steps[0], small)))
            if tried[-1][1].seconds + tried[-1][1].once > _LONG:
                break
        # The rest by the power of its entries with which the cost grew last.
        (before, cheaper), (size, found) = tried[-2:] if len(tried) > 1 else tried * 2
        more = whole / size
        again = more ** _power(cheaper.seconds, found.seconds, size / before)
        once = more ** _power(cheaper.once, found.once, size / before)
        # histograms do not grow, merged task vectors do
        held = more ** _power(cheaper.statistics, found.statistics, size / before, least=0.0)
        return MergeCost(
            seconds=matrices * found.seconds * again,
            once=matrices * found.once * once,
            bytes=found.bytes * more,
            statistics=matrices * found.statistics * held,
        )

    def _measured(self, step: TensorStep, shape: tuple[int, ...], copies: int = 1) -> MergeCost:
        """The cost of one made-up tensor; of `copies` that take turns the average."""
        # 1. Make tensors with names of their own, which key their statistics, and one to begin
        #    with, at which what is to be compiled is compiled.
        warm, *steps = self._steps(step, shape, 1 + copies)
        out = torch.empty(1 + copies, math.prod(shape), dtype=self._compute, device=self._device)
        self._kernel.fill(out[0], warm, 0)
        # 2. The first time a tensor's statistics are computed.
        known = self._kernel.statistics.nbytes
        meter, started = MemoryMeter(self._device), time.perf_counter()
        self._kernel.fill(out[1], steps[0], 0)
        first = time.perf_counter() - started
        statistics = self._kernel.statistics.nbytes - known
        taken = meter.most() - statistics

        # 3. Then they are there.
        def fill_all() -> None:
            for place, one in zip(out[1:], steps, strict=True):
                self._kernel.fill(place, one, 1)

        again = best_of(fill_all, self._device) / copies
        return MergeCost(again, max(0.0, first - again), max(0, taken), statistics)

    def _steps(self, step: TensorStep, shape: tuple[int, ...], count: int) -> list[TensorStep]:
        """Make tensors of this shape in place of the last ones, and steps that merge them."""
        names = [str(number) for number in range(self._made, self._made + count)]
        self._made += count
        base = {name: torch.randn(shape) for name in names}
        for source, made in self._sources.items():
            expert = source != BASE
            made.hold({k: t + 0.1 * torch.randn(shape) if expert else t for k, t in base.items()})
        spec = replace(step.tensor, shape=shape, matrices=1)
        return [replace(step, tensor=replace(spec, name=name), mixture=None) for name in names]


class _MadeUpSource:
    """Holds made-up tensors: so much of a `Source` as a kernel needs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._tensors: dict[str, Tensor] = {}
        self.calibration = _MadeUpCalibration(self)

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold these tensors in place of the last ones, rounded to its dtype."""
        self._tensors = {name: tensor.to(self._dtype) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        """One of the tensors."""
        return self._tensors[name]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of all of them."""
        return self._dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of them."""
        return tuple(self._tensors[name].shape)


class _MadeUpCalibration:
    """Makes calibration data of made-up tensors: so much of a `CalibrationFile` as is needed."""

    def __init__(self, source: _MadeUpSource) -> None:
        self._source = source

    def read(self, kind: str, name: str) -> Tensor | None:
        """Return what a file would hold of one of the tensors."""
        shape = self._source.shape(name)
        inputs = shape[-1]
        if kind in ("gram", "cross"):
            return torch.eye(inputs) if len(shape) > 1 else None
        if kind == "mean_abs":
            return torch.ones(inputs)
        return torch.ones(shape) if kind == "fisher" else torch.ones(_SAMPLES, *shape)

    def rms(self, kind: str) -> float:
        """Return the size of the statistics."""
        return 1.0


def _smaller(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes of the same aspect that grow to this one, or to the largest that is tried."""
    whole = math.prod(shape)
    for entries in (*(size for size in _SIZES if size < whole), whole):
        if entries <= _SIZES[-1]:
            scale = (entries / whole) ** (1 / len(shape))
            yield tuple(max(1, round(side * scale)) for side in shape)


def _power(before: float, after: float, more: float, least: float = 1.0) -> float:
    """The power of its entries with which a cost grew when there were `more` times as many."""
    if before <= 0 or after <= 0 or more <= 1:
        return 1.0
    return min(max(least, math.log(after / before) / math.log(more)), _STEEPEST)
