"""One step of a plan over memory: slices in, arithmetic in float32, rounded slices out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import NonFiniteError
from evomerge.materialize.plan import MergeRule, TensorStep
from evomerge.methods.masks import At
from evomerge.methods.registry import View
from evomerge.models.source import Source
from evomerge.models.vocabulary import reconciled
from evomerge.recipe import BASE
from evomerge.registry import options

ARITHMETIC = torch.float32
_LANES = 1 << 12


@dataclass(frozen=True)
class Kernel:
    """Makes tensors from sources: `weights` is "checkpoint" (the base's dtype, tensor by tensor)
    or a float dtype's name; `scratch` bounds the bytes an element-wise merge holds beside its
    sources and its output.
    """

    sources: Mapping[str, Source]
    weights: str = "checkpoint"
    scratch: int = 16 << 20
    device: str = "cpu"

    def dtype(self, name: str) -> torch.dtype:
        """The dtype to which the merged tensor `name` is rounded."""
        if self.weights == "checkpoint":
            return self.sources[BASE].dtype(name)
        return getattr(torch, self.weights)

    def fill(self, out: Tensor, step: TensorStep, seed: int) -> None:
        """Make the step's tensor and write it into `out` (contiguous, of the tensor's shape).

        Values are rounded to `dtype(name)` first, so that an `out` of a wider dtype holds exactly
        what a checkpoint of that dtype holds.

        Raises:
            NonFiniteError: a rounded value is NaN or infinite; names the tensor.
        """
        flat = out.view(-1)
        dtype = self.dtype(step.tensor.name)
        for start, part in self._parts(step, seed):
            rounded = part.to(dtype)
            if rounded.numel():
                low, high = torch.aminmax(rounded)
                if not (math.isfinite(low) and math.isfinite(high)):
                    raise NonFiniteError(f"{step.tensor.name}: the merge gave NaN or infinity")
            flat[start : start + rounded.numel()].copy_(rounded)

    def _parts(self, step: TensorStep, seed: int) -> Iterator[tuple[int, Tensor]]:
        """The merged tensor as flat slices in order, each with its first index."""
        if step.rule is None:
            yield 0, self._read(step, step.source).reshape(-1)
            return
        base = self._read(step, BASE)
        experts = [self._read(step, name) for name in step.rule.experts]
        if not step.rule.method.elementwise:
            wide = [t.to(ARITHMETIC) for t in (base, *experts)]
            yield 0, self._apply(step, wide[0], wide[1:], seed, 0, {}).reshape(-1)
            return
        size = self._slice_length(len(experts))
        view = View(base.reshape(-1), [e.reshape(-1) for e in experts], ARITHMETIC, block=size)
        extra = _measured(step.rule, view)
        for start in range(0, base.numel(), size):
            chunk = slice(start, start + size)
            wide = [t[chunk].to(ARITHMETIC) for t in (view.base, *view.experts)]
            yield start, self._apply(step, wide[0], wide[1:], seed, start, extra)

    def _apply(
        self,
        step: TensorStep,
        base: Tensor,
        experts: list[Tensor],
        seed: int,
        start: int,
        extra: Mapping[str, Any],
    ) -> Tensor:
        assert step.rule is not None
        method = step.rule.method
        if method.needs_position:
            extra = {**extra, "at": At(seed, step.tensor.name, step.rule.experts, start)}
        return method.function(base, experts, **step.rule.arguments, **extra)

    def _read(self, step: TensorStep, source: str) -> Tensor:
        tensor = reconciled(self.sources[source], self.sources[BASE], step.tensor)
        return tensor.to(self.device, non_blocking=True)

    def _slice_length(self, experts: int) -> int:
        """Entries per slice: sources, task vectors, sparsified ones and sums live at a time."""
        live = 4 * (3 * (experts + 1) + 4)
        return max(_LANES, self.scratch // live // _LANES * _LANES)


def _measured(rule: MergeRule, view: View) -> dict[str, Any]:
    """Run the method's reduction, if it has one, with the parameters that it names."""
    measure = rule.method.measure
    if measure is None:
        return {}
    named = options(measure)
    return {"measured": measure(view, **{k: v for k, v in rule.arguments.items() if k in named})}
