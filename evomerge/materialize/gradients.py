"""Derivatives of a loss in a recipe's coefficients, from its derivatives in the merged weights.

A loss L of the merged weights θ(c) has ∂L/∂c = Σ over tensors t of ⟨∂L/∂θ_t, ∂θ_t/∂c⟩. The first
factor is what a backward pass leaves at a tensor; the second is that of the merge method, by
autograd of its own function on slices, with the entries that it keeps, drops or elects held fixed.
Nothing of the size of a model is stored: a tensor's gradient goes in, some numbers come out.

Source: AdaMerging, Yang et al. 2023, arXiv:2310.02575 (there for task arithmetic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.materialize.kernel import Kernel, Prepared, slices
from evomerge.materialize.plan import MergeRule, TensorStep, as_tensors
from evomerge.methods import Entries, find_method
from evomerge.methods.core.registry import named_by
from evomerge.methods.core.slices import part_of
from evomerge.recipe import Merge, MergeCoefficient, Recipe

STEP = 1e-4
"""Step of the differences of measures, which are arithmetic on a few numbers in float64."""
STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
"""The central difference of fourth order: multiple of the step → factor."""
SLICE = 1 << 15
"""Entries of a slice on CPU: torch adds up so many in one thread, whatever the threads."""


def check_differentiable(methods: Sequence[str], where: str) -> None:
    """Refuse methods through which there is no gradient.

    Raises:
        InputError: there are such; begins with `where` and names them and what to use.
    """
    lacking = [name for name in methods if not find_method(name, where).differentiable_in]
    if lacking:
        raise InputError(
            f"{where}: {', '.join(lacking)} has no gradient; use a method that is computed entry "
            "by entry, such as task_arithmetic, ties or linear, or leave the gradient out"
        )


def differentiable_in(recipe: Recipe) -> list[MergeCoefficient]:
    """Return the coefficients of a recipe in which it is differentiable."""
    found = []
    for merge in recipe.merges:
        method = find_method(merge.method, "recipe")
        for name in method.differentiable_in:
            owners = merge.experts if method.parameters[name].per_expert else [None]
            pieces = range(len(merge.pieces)) if merge.pieces else [None]
            found += [_name_of(merge, *key) for key in product(owners, [name], pieces)]
    return list(dict.fromkeys(found))


def _name_of(
    merge: Merge, expert: str | None, parameter: str, piece: int | None
) -> MergeCoefficient:
    """Name the coefficient that counts for a piece: its own, or that of the whole tensor."""
    if piece is not None and not merge.pieces[piece].has(expert, parameter):
        piece = None
    return MergeCoefficient(merge.slot, merge.group, expert, parameter, piece)


class CoefficientGradients:
    """Sums ∂L/∂c over a recipe's tensors, in whatever order they come.

    Sums are in the arithmetic's dtype within a slice, and exact in float64 over slices, so that
    neither the order of the tensors nor the number of threads decides the bytes.
    """

    def __init__(self, kernel: Kernel, recipe: Recipe) -> None:
        """Begin at zero for every coefficient of `recipe`."""
        self._kernel, self._seed = kernel, recipe.seed
        self._merges = {(merge.slot, merge.group): merge for merge in recipe.merges}
        self._found: dict[MergeCoefficient, list[float]] = {}

    def has_gradient(self, step: TensorStep) -> bool:
        """Say whether any coefficient of the step's merge has a derivative."""
        return step.rule is not None and bool(_coefficients(step.rule))

    def add(self, step: TensorStep, gradient: Tensor) -> None:
        """Add a tensor's share.

        Args:
            gradient: ∂L/∂θ_t, of the tensor's shape in the merged model, in any float dtype.
        """
        assert step.rule is not None
        if step.mixture is not None:  # to what the experts were merged of
            layer, mixture = step.mixture
            groups = self._kernel.groups.of(layer, mixture)
            gradient = groups.spread(layer, step.tensor, gradient)
        keys = ((step.slot, group) for group in step.tensor.groups)
        merge = next(self._merges[key] for key in keys if key in self._merges)
        owners = _coefficients(step.rule)
        read = self._kernel.read(gradient, step)
        for name, (grad, base, *experts) in self._kernel.matrices(
            step, gradient.contiguous(), *read
        ):
            prepared = self._kernel.prepare(step, base, experts, name, self._seed)
            back = self._kernel.held_back(step, name, base)
            if back is not None:  # θ = θ₀ + (m − θ₀) ⊙ f, so ∂L/∂m = ∂L/∂θ ⊙ f
                grad = grad.to(prepared.view.dtype) * back.part(slice(0, grad.numel()))
            for entries, piece, rule in self._kernel.cuts(step, name, base.numel()):
                measure = partial(self._kernel.measure, replace(step, rule=rule), prepared, name)
                for part in slice_gradients(rule, prepared, measure, grad, entries):
                    for (expert, parameter), value in zip(owners, part.tolist(), strict=True):
                        key = _name_of(merge, expert, parameter, piece)
                        self._found.setdefault(key, []).append(value)

    def sums(self) -> dict[MergeCoefficient, float]:
        """Return ∂L/∂c so far by coefficient; those of tensors that were not added are missing."""
        return {key: math.fsum(values) for key, values in self._found.items()}


def slice_gradients(
    rule: MergeRule,
    prepared: Prepared,
    measure: Callable[..., Any],
    gradient: Tensor,
    entries: slice | None = None,
) -> Iterator[Tensor]:
    """Yield, slice by slice, the inner products of a gradient with ∂θ/∂c.

    Args:
        prepared: the tensors of one merge.
        measure: what the method measures of them with the rule's arguments, or with others given.
        gradient: flat, (n,).
        entries: those that the rule merges; None for all.

    Yields:
        Tensors (coefficients,) in the order of `_coefficients`.
    """
    view, base, method = prepared.view, prepared.base, rule.method
    # 1. every coefficient is its value plus an ε of its own, at which the slices are differentiated
    owners = _coefficients(rule)
    epsilon = torch.zeros(len(owners), dtype=view.dtype, device=base.device, requires_grad=True)
    arguments = _moved_arguments(rule, epsilon)
    # 2. what is measured is linear in ε, to first order
    measured = measure()
    line = _linearised(measured, _tangents(rule, measured, measure), epsilon)
    size = SLICE if base.device.type == "cpu" else view.block
    for chunk in slices(entries or slice(0, base.numel()), size):
        own, experts = base[chunk].to(view.dtype), [e[chunk].to(view.dtype) for e in view.experts]
        own = torch.zeros_like(own) if prepared.added else own
        # 3. the method's own function on the slice, and its derivative towards the gradient
        with torch.enable_grad():
            given = {name: value() for name, value in arguments.items()}
            if method.measure is not None:
                given["measured"] = part_of(line, chunk)
            if method.needs_position:
                given["at"] = prepared.place(chunk.start)
            merged = method.function(own, experts, **given)
            if not merged.requires_grad:  # nothing of the slice depends on a coefficient
                continue
            found = torch.autograd.grad(merged, epsilon, gradient[chunk].to(view.dtype))
        yield found[0]


def _coefficients(rule: MergeRule) -> list[tuple[str | None, str]]:
    """The (expert, parameter) pairs that a merge is differentiable in; experts in its order."""
    parameters = [rule.method.parameters[name] for name in rule.method.differentiable_in]
    return [
        (owner, parameter.name)
        for parameter in parameters
        for owner in (rule.experts if parameter.per_expert else (None,))
    ]


def _moved_arguments(rule: MergeRule, epsilon: Tensor) -> dict[str, Any]:
    """The function's arguments as calls that give them, moved by ε where it is differentiable."""
    found: dict[str, Any] = {}
    for parameter in rule.method.parameters.values():
        value = as_tensors(rule.arguments[parameter.keyword])
        if isinstance(value, Tensor):
            value = value.to(epsilon.device, epsilon.dtype)
        found[parameter.keyword] = partial(_same, value)
    index = 0
    for name in rule.method.differentiable_in:
        parameter = rule.method.parameters[name]
        count = len(rule.experts) if parameter.per_expert else 1
        exact = torch.tensor(rule.arguments[parameter.keyword], dtype=epsilon.dtype)
        where = slice(index, index + count) if parameter.per_expert else index
        found[parameter.keyword] = partial(_moved, exact.to(epsilon.device), epsilon, where)
        index += count
    return found


def _same(value: Any) -> Any:
    return value


def _moved(value: Tensor, epsilon: Tensor, where: slice | int) -> Tensor:
    return value + epsilon[where]


def _tangents(
    rule: MergeRule, measured: Any, measure: Callable[..., Any]
) -> list[dict[float, Any]]:
    """For every coefficient the measure's results around it: factor of a difference → result.

    Empty for those that the measure does not name.
    """
    method = rule.method
    found: list[dict[float, Any]] = []
    if method.measure is None:
        return []
    named = named_by(method.measure)
    for expert, name in _coefficients(rule):
        keyword = method.parameters[name].keyword
        if named is not None and keyword not in named:
            found.append({})
            continue
        around = {}
        for multiple, factor in STENCIL.items():
            given = {**rule.arguments, keyword: _shifted(rule, keyword, expert, multiple * STEP)}
            again = method.remeasure and method.remeasure(measured, **given)
            around[factor / STEP] = again or measure(given)
        found.append(around)
    return found


def _shifted(rule: MergeRule, keyword: str, expert: str | None, by: float) -> Any:
    value = rule.arguments[keyword]
    if expert is None:
        return value + by
    place = rule.experts.index(expert)
    return [v + by if i == place else v for i, v in enumerate(value)]


def _linearised(value: Any, tangents: Sequence[Mapping[float, Any]], epsilon: Tensor) -> Any:
    """`value` with every number in it replaced by one that moves with ε; see `part_of`."""

    def inner(pick: Any, held: Any) -> Any:
        picked = [{factor: pick(one) for factor, one in around.items()} for around in tangents]
        return _linearised(held, picked, epsilon)

    if isinstance(value, float) or (
        isinstance(value, list) and value and isinstance(value[0], float)
    ):
        slopes = [
            sum(
                (factor * torch.tensor(one, dtype=torch.float64) for factor, one in around.items()),
                torch.zeros_like(torch.tensor(value, dtype=torch.float64)),
            )
            for around in tangents
        ]
        exact = torch.tensor(value, dtype=epsilon.dtype, device=epsilon.device)
        return _MovingNumbers(exact, torch.stack(slopes, -1).to(exact), epsilon)
    if isinstance(value, Entries):
        return _MovingEntries(value, list(tangents), epsilon)
    if hasattr(value, "part"):
        return value
    if hasattr(value, "_fields"):
        return type(value)(
            *(inner(lambda v, n=n: getattr(v, n), getattr(value, n)) for n in value._fields)
        )
    if isinstance(value, list | tuple):
        return [inner(lambda v, i=i: v[i], held) for i, held in enumerate(value)]
    return value


@dataclass(frozen=True)
class _MovingNumbers:
    """Numbers, () or (n,), with their slopes along each ε: (…, coefficients)."""

    values: Tensor
    slopes: Tensor
    epsilon: Tensor

    def part(self, where: slice) -> Tensor:
        """Return the numbers, which are the same in every slice."""
        return self.values + self.slopes @ self.epsilon


@dataclass(frozen=True)
class _MovingEntries:
    """Numbers of entries, rows or columns, and the same around each coefficient."""

    entries: Entries
    tangents: Sequence[Mapping[float, Entries]]
    epsilon: Tensor

    def part(self, where: slice) -> Tensor:
        """Return a slice's numbers, (n,)."""
        found = self.entries.part(where)
        for index, around in enumerate(self.tangents):
            if any(one.values is not self.entries.values for one in around.values()):
                slope = sum(factor * one.part(where) for factor, one in around.items())
                found = found + slope * self.epsilon[index]
        return found
