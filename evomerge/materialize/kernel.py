"""One step of a plan over memory: slices in, arithmetic in float32, rounded slices out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import NonFiniteError
from evomerge.materialize.compiled import Compiler
from evomerge.materialize.feed import Feed, MemoryMapped, Target
from evomerge.materialize.plan import TensorStep, as_tensors
from evomerge.materialize.sparsified import sparsified
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.methods.core.masks import At, at
from evomerge.methods.core.slices import part_of
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.methods.core.view import Statistic, View
from evomerge.models.files.finite import count_non_finite
from evomerge.models.source import Source
from evomerge.recipe import BASE

ARITHMETIC = torch.float32
COMPILED_ABOVE = 1 << 25
"""Parameters of a model above which element-wise merges are compiled: seconds, once a process."""
_LANES = 1 << 12
_COMPILED_SLICE = 1 << 30
_SMALL = 1 << 8
"""Entries up to which functions are called as they are."""


@dataclass(frozen=True)
class Prepared:
    """The tensors of one merge as its method sees them.

    Attributes:
        base: flat, in its stored dtype.
        view: of the sources; of sparse task vectors where the recipe drops entries first.
        place: from a flat index to the place of a slice that begins there.
        added: the view holds task vectors, and what the method makes of them is added to the base.
    """

    base: Tensor
    view: View
    place: Callable[[int], At]
    added: bool


@dataclass(frozen=True)
class Kernel:
    """Makes tensors from sources: `weights` is "checkpoint" (the base's dtype, tensor by tensor)
    or a float dtype's name; `scratch` bounds the bytes an element-wise merge holds beside its
    sources and its output; `compiled` (None: as the model's size suggests) makes element-wise
    merges one pass over memory, with the same bytes; `statistics` keeps what the sources alone
    decide; `feed` brings the sources' tensors to the device (None: as they are, on the CPU).
    """

    sources: Mapping[str, Source]
    weights: str = "checkpoint"
    scratch: int = 16 << 20
    compiled: bool | None = None
    statistics: Statistics = field(default_factory=Statistics)
    feed: Feed | None = None

    @cached_property
    def _feed(self) -> Feed:
        return self.feed or MemoryMapped(self.sources)

    @property
    def device(self) -> torch.device:
        """Where tensors are merged; of several GPUs, on the target's."""
        return self._feed.device

    def read(self, out: Tensor, step: TensorStep) -> list[Tensor]:
        """Return the tensors of `step.reads`, on the device of `out` if there are several GPUs."""
        return next(iter(self._feed.each([(out, step)])))

    def dtype(self, name: str) -> torch.dtype:
        """The dtype to which the merged tensor `name` is rounded."""
        if self.weights == "checkpoint":
            return self.sources[BASE].dtype(name)
        return getattr(torch, self.weights)

    def fill(self, out: Tensor, step: TensorStep, seed: int) -> None:
        """Make one step's tensor; see `fill_all`."""
        self.fill_all([(out, step)], seed)

    def fill_all(self, targets: Sequence[Target], seed: int) -> None:
        """Make every step's tensor and write it into its target, contiguous, of that shape.

        Values are rounded to `dtype(name)` first, so that a target of a wider dtype holds exactly
        what a checkpoint of that dtype holds.

        Raises:
            NonFiniteError: a rounded value is NaN or infinite, or a decomposition met one; names
                the tensor, and the model that is at fault where one is.
        """
        targets = [(out, step) for out, step in targets if out.numel()]
        tensors = self._feed.each(targets)
        largest: list[tuple[TensorStep, Tensor]] = []
        for (out, step), read in zip(targets, tensors, strict=True):
            try:
                parts = self._fill(out.view(-1), step, read, seed, self.dtype(step.tensor.name))
                largest += [(step, part) for part in parts]
            except torch.linalg.LinAlgError as error:
                raise NonFiniteError(f"{self._fault(step)} ({error})") from None
        for step in _not_finite(largest):
            raise NonFiniteError(self._fault(step))

    def _fault(self, step: TensorStep) -> str:
        """Say which source's tensor is not finite, or that the merge's result is not."""
        name = step.tensor.name
        for source in step.reads:
            found = count_non_finite(self.sources[source].read(name))
            if found:
                return f"{name}: {source} holds {found}"
        return f"{name}: the merge gave NaN or infinity"

    def _fill(
        self, out: Tensor, step: TensorStep, read: list[Tensor], seed: int, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """Fill `out` slice by slice; of each, the largest magnitude, NaN if there is one."""
        if step.rule is None:
            size = self._slice_length(0)
            parts = zip(read[0].reshape(-1).split(size), out.split(size), strict=True)
            yield from (_round_into(slice_, part, dtype) for part, slice_ in parts)
            return
        for name, (target, base, *experts) in self.matrices(step, out, *read):
            yield from self._fill_one(target, step, base, experts, name, seed, dtype)

    def matrices(
        self, step: TensorStep, out: Tensor, base: Tensor, *experts: Tensor
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield what is merged by itself: the whole tensors or, of stacked matrices, each.

        Yields:
            The name that keys masks and statistics, and `out`, flat, with the sources' tensors.
        """
        assert step.rule is not None
        count, name = step.tensor.matrices, step.tensor.name
        method, sparsify = step.rule.method, step.rule.sparsify
        if count == 1 or (method.elementwise and method.measure is None and sparsify is None):
            yield name, [out.view(-1), base, *experts]
            return
        whole = (out.view(base.shape), base, *experts)
        parts = zip(*(_matrices(tensor, count) for tensor in whole), strict=True)
        for index, (target, *own) in enumerate(parts):
            yield f"{name}[{index}]", [target.reshape(-1), *own]

    def prepare(
        self, step: TensorStep, base: Tensor, experts: Sequence[Tensor], name: str, seed: int
    ) -> Prepared:
        """Look at the tensors of one merge as its method will; `name` keys masks and statistics."""
        assert step.rule is not None
        relative, sparsify = step.rule.method.relative, step.rule.sparsify
        shape = tuple(base.shape)
        base, experts = base.reshape(-1), [e.reshape(-1) for e in experts]
        view = View(base, experts, ARITHMETIC, self._slice_length(len(experts)), self._run, shape)
        place = partial(at, seed, name, step.rule.experts)
        if sparsify is None:
            return Prepared(base, view, place, added=False)
        sparsifier = sparsifiers()[sparsify.kind]
        arguments, known = sparsifier.shared_by(len(experts), sparsify.model_dump()), None
        if sparsifier.statistic is not None:
            known = self.statistics.of(sparsifier.statistic, view, name, step.rule.experts)
        view = sparsified(view, sparsifier, arguments, place, relative, known)
        # the view leaves the base out of what is relative to it
        return Prepared(base, view, place, added=relative)

    def measure(
        self,
        step: TensorStep,
        prepared: Prepared,
        name: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the method's measure, in Python's numbers; None where it has none.

        `arguments` are the rule's unless others are given.
        """
        assert step.rule is not None
        method = step.rule.method
        if method.measure is None:
            return None
        given = {**(arguments or step.rule.arguments), "at": prepared.place}
        return method.measured(prepared.view, given, self._statistics(step, prepared.view, name))

    def _fill_one(
        self,
        out: Tensor,
        step: TensorStep,
        base: Tensor,
        experts: list[Tensor],
        name: str,
        seed: int,
        dtype: torch.dtype,
    ) -> Iterator[Tensor]:
        """Merge one tensor or, of stacked ones, one; `name` keys its masks and statistics."""
        assert step.rule is not None
        method, shape = step.rule.method, tuple(base.shape)
        prepared = self.prepare(step, base, experts, name, seed)
        base, view, added = prepared.base, prepared.view, prepared.added
        if not method.elementwise:
            wide = [t.to(ARITHMETIC).view(shape) for t in (view.base, *view.experts)]
            merged = method(wide[0], wide[1:], **step.rule.arguments).reshape(-1)
            yield _round_into(out, base.to(ARITHMETIC) + merged if added else merged, dtype)
            return
        arguments = dict(step.rule.tensors)
        measured = as_tensors(self.measure(step, prepared, name))
        merge = _merge_of(method.function, added)
        size = self._slice_length(len(experts))
        for start in range(0, base.numel(), size):
            chunk = slice(start, min(start + size, base.numel()))
            run = self._run if chunk.stop - start > _SMALL else _plainly
            if measured is not None:
                arguments["measured"] = part_of(measured, chunk)
            if method.needs_position:
                arguments["at"] = prepared.place(start)
            parts = [expert[chunk] for expert in view.experts]
            yield run(merge, out[chunk], base[chunk], parts, dtype, arguments)

    def _statistics(
        self, step: TensorStep, view: View, name: str
    ) -> list[Statistic] | Statistic | None:
        assert step.rule is not None
        method = step.rule.method
        if step.rule.sparsify is not None:  # statistics are of the whole task vectors
            return None
        if method.joint is not None:
            return self.statistics.of_all(method.joint, view, name, step.rule.experts)
        if method.statistic is not None:
            return self.statistics.of(method.statistic, view, name, step.rule.experts)
        return None

    @cached_property
    def _run(self) -> Callable[..., Tensor]:
        """How element-wise functions are called: compiled or as they are."""
        compiled = self.compiled
        if compiled is None:
            base = self.sources[BASE]
            compiled = sum(math.prod(base.shape(n)) for n in base.names()) >= COMPILED_ABOVE
        return Compiler() if compiled else _plainly

    def _slice_length(self, experts: int) -> int:
        """Entries per slice, a power of two, so that masks know their place.

        Sources, task vectors, sparsified ones and sums live at a time; compiled, one byte at most.
        """
        if isinstance(self._run, Compiler):
            return min(_COMPILED_SLICE, _power_of_two(self.scratch))
        return _power_of_two(self.scratch // (4 * (3 * (experts + 1) + 4)))


def _not_finite(largest: Sequence[tuple[TensorStep, Tensor]]) -> list[TensorStep]:
    """Find the steps whose magnitudes are not finite; a device is waited for once."""
    if not largest:
        return []
    home = largest[0][1].device  # a model may be spread over several
    finite = torch.stack([value.to(home) for _, value in largest]).isfinite().tolist()
    return [step for (step, _), fine in zip(largest, finite, strict=True) if not fine]


def _matrices(tensor: Tensor, count: int) -> Tensor:
    """Stacked matrices [count, rows, columns], or biases [count, columns]; a view."""
    return tensor.view(count, -1, tensor.shape[-1]) if tensor.dim() > 2 else tensor


def _plainly(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


def _power_of_two(entries: int) -> int:
    return max(_LANES, 1 << max(entries, 1).bit_length() - 1)


def _merge(
    function: Callable[..., Tensor],
    added: bool,
    out: Tensor,
    base: Tensor,
    experts: list[Tensor],
    dtype: torch.dtype,
    arguments: Mapping[str, Any],
) -> Tensor:
    own, wide = base.to(ARITHMETIC), [expert.to(ARITHMETIC) for expert in experts]
    if added:
        return _round_into(out, own + function(torch.zeros_like(own), wide, **arguments), dtype)
    return _round_into(out, function(own, wide, **arguments), dtype)


@cache
def _merge_of(method: Callable[..., Tensor], added: bool) -> Callable[..., Tensor]:
    """A method's whole pass; one object for each, so that it is compiled once.

    Args:
        added: `experts` are task vectors, and what the method makes of them is added to the base.
    """
    return partial(_merge, method, added)


def _round_into(out: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Write values rounded to `dtype`; their largest magnitude, NaN if there is one."""
    rounded = values.to(dtype)
    out.copy_(rounded)
    return rounded.to(ARITHMETIC).abs().amax()
