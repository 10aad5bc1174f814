"""Merging rehearsed: made-up tensors of the recipe's shapes, smaller where they are large."""

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
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.source import Source
from evomerge.preflight.machine import Meter
from evomerge.preflight.products import best_of
from evomerge.recipe import BASE, Recipe

_ENTRIES = 1 << 23
"""Beyond every cache: larger tensors take as much longer as they have more entries."""
_COPIES = 64
_SIZES = tuple(1 << bits for bits in range(16, 25, 2))
"""Entries of matrices whose cost grows faster, the smallest first."""
_SECONDS = 0.3
"""A size that takes so long tells what larger ones take."""
_STEEPEST = 0.5
"""By how much more than the entries' first power a cost may grow: with a cube of the side."""


@dataclass(frozen=True)
class Merging:
    """What merging a recipe takes.

    Attributes:
        seconds: each time.
        once: more seconds, for the first recipe: what the sources alone decide.
        bytes: beside sources, result and statistics.
        statistics: bytes of what the sources alone decide.
    """

    seconds: float
    once: float
    bytes: int
    statistics: int


@dataclass(frozen=True)
class Cost:
    """As `Merging`, of so many entries."""

    entries: int
    seconds: float
    once: float
    bytes: int
    statistics: int


class MadeUp:
    """A source of tensors with random entries: so much of a `Source` as a kernel needs."""

    def __init__(self, name: str, dtype: torch.dtype, spread: float) -> None:
        self.name = name
        self._dtype, self._spread = dtype, spread
        self._tensors: dict[str, Tensor] = {}

    def make(self, spec: TensorSpec, base: MadeUp | None) -> None:
        """A tensor of this form; `spread` off the base's, if that is given."""
        entries = torch.empty(spec.shape).normal_(std=self._spread)
        if base is not None:
            entries += base.read(spec.name).float()
        self._tensors[spec.name] = entries.to(self._dtype)

    def read(self, name: str) -> Tensor:
        """One of the tensors made."""
        return self._tensors[name]

    def dtype(self, name: str) -> torch.dtype:
        """Of all of them."""
        return self._dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of them."""
        return tuple(self._tensors[name].shape)


def rehearse_merging(
    recipe: Recipe,
    layout: Layout,
    dtypes: Mapping[str, torch.dtype],
    kernel: Kernel,
    compute: torch.dtype,
    device: str = "cpu",
) -> Merging:
    """Fill a tensor of each kind that occurs.

    Args:
        dtypes: of the recipe's sources, by name.
        kernel: of the worker, for its settings.
        device: where it merges.
        compute: the dtype of the resident model.
    """
    alike: dict[object, list[TensorStep]] = {}
    for step in plan(recipe, layout, dtypes):
        alike.setdefault(_kind(step), []).append(step)
    large = layout.parameters >= COMPILED_ABOVE
    kernel = replace(kernel, compiled=large)
    meter = Meter(device)
    bench = _Bench(kernel, dtypes, compute, device)
    costs = [(len(steps), steps[0], bench.cost(steps[0])) for steps in alike.values()]
    lasting = meter.left()  # compiled code, mostly
    return Merging(
        seconds=sum(count * _times(step, cost) * cost.seconds for count, step, cost in costs),
        once=sum(count * _times(step, cost) * cost.once for count, step, cost in costs),
        bytes=lasting + int(max(cost.bytes * _growth(step, cost) for _, step, cost in costs)),
        statistics=int(sum(n * _times(step, cost) * cost.statistics for n, step, cost in costs)),
    )


def _kind(step: TensorStep) -> object:
    """What steps that take equally long have in common."""
    rule = step.rule
    how = (rule.method.name, rule.experts, rule.drop) if rule else step.source
    size = math.prod(step.tensor.shape)
    return how, size if _even(step) else (step.tensor.shape, step.tensor.matrices)


def _even(step: TensorStep) -> bool:
    """Whether every entry costs the same, however many there are."""
    method = step.rule and step.rule.method
    return not method or (method.elementwise and method.joint is None)


class _Bench:
    """Times single steps."""

    def __init__(
        self, kernel: Kernel, dtypes: Mapping[str, torch.dtype], compute: torch.dtype, device: str
    ) -> None:
        self._kernel, self._dtypes, self._compute = kernel, dtypes, compute
        self._device = device
        self._warm: set[object] = set()

    def cost(self, step: TensorStep) -> Cost:
        """Of as many entries as tell what the whole tensor takes."""
        found = self._flat(step) if self._elementwise(step) else None
        if found is not None and _even(step):
            return found
        grown = self._grown(step)
        if found is None:
            return grown
        share = grown.entries / found.entries
        return replace(grown, seconds=found.seconds * share)

    def _flat(self, step: TensorStep) -> Cost:
        """Of few rows, in which nothing that grows faster than the entries takes long."""
        flat = _reshaped(step, _ENTRIES)
        copies = min(_COPIES, math.ceil(_ENTRIES / math.prod(flat.tensor.shape)))
        return self._timed(flat, copies)

    def _grown(self, step: TensorStep) -> Cost:
        """Of sizes that grow until one takes long, with how much faster the costs grow."""
        found: list[Cost] = []
        for spec in _sizes(step.tensor):
            found.append(self._timed(replace(step, tensor=spec)))
            if max(found[-1].seconds, found[-1].once) > _SECONDS:
                break
        last = found[-1]
        more = math.prod(step.tensor.shape) / step.tensor.matrices / last.entries
        if len(found) == 1 or more <= 1:
            return last
        return replace(
            last,
            seconds=last.seconds * more ** _excess(found[-2], last, "seconds"),
            once=last.once * more ** _excess(found[-2], last, "once"),
        )

    @staticmethod
    def _elementwise(step: TensorStep) -> bool:
        return step.rule is None or step.rule.method.elementwise

    def _timed(self, step: TensorStep, copies: int = 1) -> Cost:
        """`copies`: tensors that take turns, so that they come from memory and not from a cache."""
        size = math.prod(step.tensor.shape)
        rule = step.rule
        kind = size >= _ENTRIES, rule and (rule.method.name, len(rule.experts), bool(rule.drop))
        if kind not in self._warm:  # compiles what is to be compiled, for large ones something else
            self._warm.add(kind)
            self._timed(step)
        steps = [
            replace(step, tensor=replace(step.tensor, name=str(number))) for number in range(copies)
        ]
        kernel = self._kernel_of(steps)
        out = torch.empty(copies, size, dtype=self._compute, device=self._device)
        meter, started = Meter(self._device), time.perf_counter()
        kernel.fill(out[0], steps[0], 0)
        first, statistics = time.perf_counter() - started, kernel.statistics.nbytes
        taken = meter.most() - statistics

        def fill_all() -> None:
            for place, one in zip(out, steps, strict=True):
                kernel.fill(place, one, 1)

        again = best_of(fill_all, self._device, _SECONDS / 4) / copies
        return Cost(size, again, max(0.0, first - again), max(0, taken), statistics)

    def _kernel_of(self, steps: Sequence[TensorStep]) -> Kernel:
        """A kernel over made-up models of the tensors of these steps."""
        base = MadeUp(BASE, self._dtypes[BASE], 0.02)
        sources = {n: MadeUp(n, dtype, 0.002) for n, dtype in self._dtypes.items() if n != BASE}
        for step in steps:
            base.make(step.tensor, None)
            for source in sources.values():
                source.make(step.tensor, base)
        found = cast(Mapping[str, Source], {BASE: base, **sources})
        return replace(self._kernel, sources=found, statistics=Statistics(limit=1 << 40))


def _reshaped(step: TensorStep, most: int) -> TensorStep:
    """A step of at most so many entries, in few rows."""
    spec = step.tensor
    entries = min(most, math.prod(spec.shape) // spec.matrices)
    rows = math.gcd(64, entries)
    shape = (rows, entries // rows) if len(spec.shape) > 1 else (entries,)
    return replace(step, tensor=replace(spec, shape=shape, matrices=1))


def _sizes(spec: TensorSpec) -> Iterator[TensorSpec]:
    """One of the tensor's matrices, in sizes that grow to its own."""
    shape = spec.shape[-2:] if spec.matrices > 1 else spec.shape
    whole = math.prod(shape)
    for entries in (*(size for size in _SIZES if size < whole), whole):
        if entries <= _SIZES[-1]:
            scale = (entries / whole) ** (1 / len(shape))
            small = tuple(max(1, round(side * scale)) for side in shape)
            yield replace(spec, shape=small, matrices=1)


def _times(step: TensorStep, cost: Cost) -> float:
    return math.prod(step.tensor.shape) / cost.entries


def _growth(step: TensorStep, cost: Cost) -> float:
    """How much more memory a whole tensor takes that cannot be merged slice by slice."""
    return 1.0 if _even(step) else _times(step, cost) / step.tensor.matrices


def _excess(before: Cost, after: Cost, name: str) -> float:
    """By which power something grows beyond its entries."""
    first, second = getattr(before, name), getattr(after, name)
    if first <= 0 or second <= 0:
        return 0.0
    power = math.log(second / first) / math.log(after.entries / before.entries)
    return min(max(0.0, power - 1), _STEEPEST)
