"""One step of a plan over memory: slices in, arithmetic in float32, rounded slices out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import NonFiniteError
from evomerge.materialize.compiled import Compiler
from evomerge.materialize.expert_groups import ExpertGroups
from evomerge.materialize.feed import Feed, MemoryMapped, Target
from evomerge.materialize.plan import Cut, TensorStep, as_tensors
from evomerge.materialize.sparsified import sparsified
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.methods.core.aim import AIM_KIND, aim_factors
from evomerge.methods.core.masks import At, at
from evomerge.methods.core.registry import named_by
from evomerge.methods.core.slices import Entries, part_of
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.methods.core.view import Statistic, View, one_kind
from evomerge.models.files.finite import count_non_finite
from evomerge.models.layout import TensorSpec
from evomerge.models.source import Source
from evomerge.models.tokens.matching import Matched
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

    @cached_property
    def groups(self) -> ExpertGroups:
        """The groups of the base's experts, where a recipe merges them."""
        return ExpertGroups(self.sources[BASE])

    @property
    def device(self) -> torch.device:
        """Where tensors are merged; of several GPUs, on the target's."""
        return self._feed.device

    @property
    def compiles(self) -> bool:
        """Whether element-wise merges are compiled."""
        return isinstance(self._run, Compiler)

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
                fill = self._fill if step.mixture is None else self._fill_fewer
                parts = fill(out.view(-1), step, read, seed, self.dtype(step.tensor.name))
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
            file = self.sources[source].calibration
            kinds = file.head.kinds if file is not None else ()
            for kind in kinds:
                about = None if file is None else file.read(kind, name)
                if about is not None and (found := count_non_finite(about)):
                    return f"{name}: the {kind} statistics of {source} hold {found}"
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

    def _fill_fewer(
        self, out: Tensor, step: TensorStep, read: list[Tensor], seed: int, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """Fill `out` with the parts of fewer experts, made of a whole tensor that was rounded."""
        assert step.mixture is not None
        layer, mixture = step.mixture
        whole = torch.empty(step.tensor.shape, dtype=dtype, device=out.device)
        yield from self._fill(whole.view(-1), step, read, seed, dtype)
        parts = self.groups.of(layer, mixture).merged(layer, step.tensor, whole)
        for part, own in zip(out.view(mixture.experts, -1), parts, strict=True):
            yield _round_into(part, own.reshape(-1), dtype)

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
        view = self._calibrated(view, step, name)
        place = partial(at, seed, name, step.rule.experts)
        if sparsify is None:
            return Prepared(base, view, place, added=False)
        sparsifier = sparsifiers()[sparsify.kind]
        arguments, known = sparsifier.shared_by(len(experts), sparsify.model_dump()), None
        if sparsifier.statistic is not None and self.statistics.keeps:
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
        known = self._statistics(step, prepared.view, name, given)
        return method.measured(prepared.view, given, known)

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
        back = self.held_back(step, name, base)
        base, view, added = prepared.base, prepared.view, prepared.added
        if not method.elementwise:
            wide = [t.to(ARITHMETIC).view(shape) for t in (view.base, *view.experts)]
            merged = method(wide[0], wide[1:], **step.rule.arguments).reshape(-1)
            own = base.to(ARITHMETIC)
            merged = own + merged if added else merged
            if back is not None:
                merged = own + (merged - own) * back.part(slice(0, len(own)))
            yield _round_into(out, merged, dtype)
            return
        merge = _merge_of(method.function, added)
        size, entries = self._slice_length(len(experts)), base.numel()
        whole = not step.rule.pieces and back is None and _SMALL < entries <= size
        if whole and step.rule.complete is not None:
            # in one call, without anything of this tensor's own to be found out or cut
            parts = list(view.experts)
            yield self._run(merge, out, base, parts, dtype, step.rule.complete)
            return
        for cut in self.cuts(step, name, entries):
            arguments = dict(cut.rule.tensors)
            measured = as_tensors(self.measure(step, prepared, name, cut.rule.arguments))
            for chunk in slices(cut.entries, size):
                run = self._run if chunk.stop - chunk.start > _SMALL else _plainly
                if measured is not None:
                    arguments["measured"] = part_of(measured, chunk)
                if method.needs_position:
                    arguments["at"] = prepared.place(chunk.start)
                parts = [expert[chunk] for expert in view.experts]
                rest = [] if back is None else [back.part(chunk)]
                yield run(merge, out[chunk], base[chunk], parts, dtype, arguments, *rest)

    def cuts(self, step: TensorStep, name: str, entries: int) -> Iterator[Cut]:
        """Yield the ranges of a merge's entries that have one rule each; see `MergeRule.cut`.

        Args:
            step: with the tensor's rule.
            name: the tensor's, or of one of the matrices stacked in it.
            entries: of the tensor or matrix.
        """
        assert step.rule is not None
        first = (matrix_index(step.tensor.name, name) or 0) * entries
        return step.rule.cut(math.prod(step.tensor.shape), first, entries)

    def held_back(self, step: TensorStep, name: str, base: Tensor) -> Entries | None:
        """Return what multiplies the changes of a merged tensor (AIM); None where nothing does.

        Args:
            step: with the tensor's rule.
            name: the tensor's, or of one of the matrices stacked in it.
            base: θ₀, of the tensor's or matrix's shape.
        """
        assert step.rule is not None
        aim, source = step.rule.aim, self.sources[BASE]
        if aim is None or step.tensor.group == "embeddings" or source.calibration is None:
            return None
        found = source.calibration.read(AIM_KIND, step.tensor.name)
        if found is None:
            return None
        factors = aim_factors(found, aim.omega, aim.quantile).to(base.device)
        if base.dim() < 2:  # norms entry by entry, biases not at all
            return Entries(factors) if factors.shape == base.shape else None
        turned = step.tensor.transposed
        columns = base[0].numel()
        fits = len(factors) == (len(base) if turned else base.shape[-1])
        return Entries(factors, columns, per_row=turned) if fits else None

    def _calibrated(self, view: View, step: TensorStep, name: str) -> View:
        """Let a view show the calibration data that its method or sparsifier asks for.

        Shown are kinds that all experts have of this tensor, in its shape.
        """
        rule = step.rule
        assert rule is not None
        kinds = set(rule.method.calibrated)
        if rule.sparsify is not None:
            kinds.update(sparsifiers()[rule.sparsify.kind].calibrated)
        files = [self.sources[expert].calibration for expert in rule.experts] if kinds else []
        if not kinds or (step.tensor.vocab_dim is not None and self._matched):
            return view
        index = matrix_index(step.tensor.name, name)
        held: dict[str, Sequence[Tensor]] = {}
        for kind in sorted(kinds):
            found = [None if f is None else f.read(kind, step.tensor.name) for f in files]
            whole = [_of_matrix(kind, one, index, view, step.tensor) for one in found]
            if all(one is not None for one in whole):
                held[kind] = [one.to(view.base.device) for one in whole if one is not None]
        sizes = [file.rms("fisher") for file in files if file] if "fisher" in held else []
        return replace(view, calibrated=held, rms=sizes, transposed=step.tensor.transposed)

    @cached_property
    def _matched(self) -> bool:
        """Whether the rows of vocabularies are others than those that the models have."""
        return any(isinstance(source, Matched) for source in self.sources.values())

    def _statistics(
        self, step: TensorStep, view: View, name: str, arguments: Mapping[str, Any]
    ) -> list[Statistic] | Statistic | None:
        assert step.rule is not None
        method = step.rule.method
        if step.rule.sparsify is not None:  # statistics are of the whole task vectors
            return None
        if method.joint is not None:
            named = named_by(method.joint) or ()
            own = {key: arguments[key] for key in sorted(named)}
            return self.statistics.of_all(method.joint, view, name, step.rule.experts, own)
        if method.statistic is not None and self.statistics.keeps:
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
        if self.compiles:
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


def _of_matrix(
    kind: str, found: Tensor | None, index: int | None, view: View, tensor: TensorSpec
) -> Tensor | None:
    """Return what is about one matrix of a statistic of a tensor; None where it does not fit it."""
    if found is None:
        return None
    if kind in ("gram", "cross"):
        inputs = view.shape[0] if tensor.transposed else view.shape[-1]
        return found if len(view.shape) == 2 and found.shape == (inputs, inputs) else None
    if index is not None:
        # halves of a fused projection count, too: cut as the tensor is
        each = found if kind == "gtheta" else [found]
        parts = torch.stack([_matrices(one, tensor.matrices)[index] for one in each])
        found = parts if kind == "gtheta" else parts[0]
    flat = one_kind(kind, found)
    return flat if flat.shape[-1] == view.base.numel() else None


def matrix_index(tensor: str, name: str) -> int | None:
    """Return the index of a matrix stacked in a tensor, by its name; None for the whole tensor."""
    return int(name[len(tensor) + 1 : -1]) if len(name) > len(tensor) else None


def slices(entries: slice, size: int) -> Iterator[slice]:
    """Cut a range of entries at the multiples of `size`."""
    for start in range(entries.start - entries.start % size, entries.stop, size):
        yield slice(max(start, entries.start), min(start + size, entries.stop))


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
    back: Tensor | None = None,
) -> Tensor:
    own, wide = base.to(ARITHMETIC), [expert.to(ARITHMETIC) for expert in experts]
    if added:
        merged = own + function(torch.zeros_like(own), wide, **arguments)
    else:
        merged = function(own, wide, **arguments)
    if back is not None:
        merged = own + (merged - own) * back
    return _round_into(out, merged, dtype)


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
