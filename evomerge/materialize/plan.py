"""The plan of a merge: one step per tensor, checked against the models before any work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch

from evomerge.common.errors import InputError
from evomerge.materialize.compiled import Arguments
from evomerge.methods import Method, find_method
from evomerge.methods.core.calibration_in_recipes import check_calibrated
from evomerge.methods.core.sparsify_in_recipes import check_sparsifiable
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.mixture import MixtureLayer, mixture_layers
from evomerge.models.source import Source
from evomerge.recipe import BASE, Aim, Merge, Mixture, Recipe, Sparsifier
from evomerge.recipe.recipe import merge_name


@dataclass(frozen=True)
class MergeRule:
    """A recipe's merge with its method looked up and every argument checked and filled in.

    Attributes:
        experts: in the recipe's order of sources.
        arguments: parameter → value; per-expert ones as lists in the order of `experts`.
        sparsify: before the method; None, too, where it would keep everything.
        aim: what holds back the method's changes; None, too, where it would hold back nothing.
        pieces: the arguments of each piece of a flattened tensor; none where it is merged whole.
    """

    method: Method
    experts: tuple[str, ...]
    arguments: Mapping[str, Any]
    sparsify: Sparsifier | None = None
    aim: Aim | None = None
    pieces: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def _of_pieces(self) -> Sequence[MergeRule]:
        return [replace(self, arguments=own, pieces=()) for own in self.pieces]

    def cut(self, whole: int, first: int, entries: int) -> Iterator[Cut]:
        """Yield the pieces that meet a part of a flattened tensor, in order.

        Pieces are those of `torch.chunk`: of ⌈n/m⌉ entries, the last shorter; of a tensor of fewer
        entries than it has pieces the last ones are empty.

        Args:
            whole: n, the tensor's entries.
            first: index in it of the part's first entry.
            entries: of the part.
        """
        if not self.pieces:
            yield Cut(slice(0, entries), None, self)
            return
        size = -(-whole // len(self.pieces))
        for index, rule in enumerate(self._of_pieces):
            start, stop = (
                min(max(at - first, 0), entries) for at in (index * size, (index + 1) * size)
            )
            if start < stop:
                yield Cut(slice(start, stop), index, rule)

    @cached_property
    def tensors(self) -> Mapping[str, Any]:
        """The arguments as an element-wise function gets them: numbers as float32 tensors."""
        return as_tensors(self.arguments)

    @cached_property
    def complete(self) -> Arguments | None:
        """The same with what the measure makes of them, where it looks at parameters alone."""
        method = self.method
        if method.measure is None or not method.of_parameters:
            return None
        measured = as_tensors(method.measured(None, self.arguments))
        return Arguments(self.tensors, measured=measured)

    @cached_property
    def text(self) -> str:
        """The whole rule as text; rules with one text make the same bytes (0 and -0 may not)."""
        said = (self.method.name, self.experts, self.arguments, self.sparsify, self.aim)
        return repr((*said, self.pieces) if self.pieces else said)


class Cut(NamedTuple):
    """A range of entries that are merged by one rule.

    Attributes:
        entries: of what is merged, flat.
        piece: its index; None for the whole.
        rule: without pieces.
    """

    entries: slice
    piece: int | None
    rule: MergeRule


@dataclass(frozen=True)
class TensorStep:
    """One tensor of the merged model: merged by `rule`, or copied from `source`.

    Attributes:
        tensor: as the sources have it. Its name keys random masks and statistics, whatever slots it
            fills: a layer keeps its weights when a path moves or repeats it.
        source: the source that the slot names.
        rule: None for a copy.
        name: the merged model's name of the tensor.
        slot: index in the path; None outside the layers.
        mixture: what merges the experts of its layer, whose parts the tensor holds; None where it
            stays as it is.
    """

    tensor: TensorSpec
    source: str
    rule: MergeRule | None
    name: str
    slot: int | None = None
    mixture: tuple[MixtureLayer, Mixture] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the merged model, with a part for each of the experts that it has."""
        shape = self.tensor.shape
        return shape if self.mixture is None else (self.mixture[1].experts, *shape[1:])

    @property
    def reads(self) -> tuple[str, ...]:
        """The sources that are read: the base and the rule's experts, or the source of a copy."""
        return (BASE, *self.rule.experts) if self.rule else (self.source,)


def plan(recipe: Recipe, layout: Layout, sources: Collection[str]) -> list[TensorStep]:
    """Return one step per stored tensor of the merged model, in the order of its `state_dict`.

    A slot's tensors, those of its merges' experts too, are those of the layer that the slot names.
    Of the sources only the names are needed.

    Raises:
        InputError: the recipe names a source, layer, group, method or parameter that is not there,
            or its mixture does not fit the models.
    """
    for name in recipe.sources:
        if name not in sources:
            raise InputError(
                f"recipe: names source {name!r}, but the models are {', '.join(sources)}"
            )
    _check_path(recipe, layout)
    # look up and check every merge of the recipe
    rules = {(merge.slot, merge.group): _rule(merge, layout, recipe) for merge in recipe.merges}
    # tensors before the layers, then those of each slot, then those after the layers
    first = next(i for i, tensor in enumerate(layout.tensors) if tensor.layer is not None)
    before = list(layout.tensors[:first])
    after = [tensor for tensor in layout.tensors[first:] if tensor.layer is None]
    slots = range(len(recipe.path))
    inside = chain.from_iterable(_slot(index, recipe, layout, rules) for index in slots)
    steps = [*_outside(before, rules), *inside, *_outside(after, rules)]
    return steps if recipe.mixture is None else _with_mixture(steps, recipe, recipe.mixture, layout)


def _with_mixture(
    steps: list[TensorStep], recipe: Recipe, mixture: Mixture, layout: Layout
) -> list[TensorStep]:
    """Let the steps of tensors with a part for each expert merge the experts."""
    if not keeps_layers(recipe, layout):
        raise InputError(
            "recipe: mixture: merges experts of a model whose layers stay as they are, and the "
            "path moves or scales some; leave one of the two out"
        )
    try:
        layers = mixture_layers(layout)
    except InputError as error:
        raise InputError(f"recipe: mixture: {error}") from None
    most = next(iter(layers.values())).experts
    if mixture.experts >= most:
        raise InputError(
            f"recipe: mixture.experts: {mixture.experts}, but the model has {most} a layer; write "
            f"2 to {most - 1}"
        )
    for layer, leads in mixture.leads.items():
        known = layer in layers and set(leads) <= set(range(most))
        if not known or len({*leads}) < len(leads) or len(leads) > mixture.experts:
            raise InputError(
                f"recipe: mixture.leads.{layer}: {list(leads)}; name at most {mixture.experts} of "
                f"the experts 0 to {most - 1}, each once, in layers {', '.join(map(str, layers))}"
            )
    parts = {spec.name: one for one in layers.values() for spec in one.tensors}
    return [
        replace(step, mixture=(parts[step.name], mixture)) if step.name in parts else step
        for step in steps
    ]


def keeps_layers(recipe: Recipe, layout: Layout) -> bool:
    """Say whether the path takes every layer once, in order and unscaled, from any source."""
    in_order = [slot.layer for slot in recipe.path] == list(range(layout.layers))
    return in_order and all(slot.scale == 1 for slot in recipe.path)


_Rules = Mapping[tuple[int | None, str], MergeRule]


def _outside(tensors: list[TensorSpec], rules: _Rules) -> Iterator[TensorStep]:
    for tensor in tensors:
        yield TensorStep(tensor, BASE, _found(rules, None, tensor), tensor.name)


def _slot(index: int, recipe: Recipe, layout: Layout, rules: _Rules) -> Iterator[TensorStep]:
    slot = recipe.path[index]
    for tensor in layout.tensors_of_layer(slot.layer):
        name = f"{layout.prefix}.{index}.{tensor.suffix}"
        yield TensorStep(tensor, slot.source, _found(rules, index, tensor), name, index)


def _found(rules: _Rules, slot: int | None, tensor: TensorSpec) -> MergeRule | None:
    """Return the rule of the finest of the tensor's groups that has one."""
    return next((rules[slot, g] for g in tensor.groups if (slot, g) in rules), None)


def check_contents(recipe: Recipe, sources: Mapping[str, Source]) -> None:
    """Refuse models that are not those the recipe was made from; reads all their weights once.

    Raises:
        InputError: a source's digest differs; names it and its folder.
    """
    for name, digest in recipe.sources.items():
        if name in sources and sources[name].digest != digest:
            raise InputError(
                f"recipe: was made from another {name!r}: its weights have digest {digest}, "
                f"those in {sources[name].folder} have {sources[name].digest}"
            )
    check_calibrated(recipe, {name: source.calibration for name, source in sources.items()})


def _check_path(recipe: Recipe, layout: Layout) -> None:
    for index, slot in enumerate(recipe.path):
        if slot.layer >= layout.layers:
            raise InputError(
                f"recipe: path[{index}] names layer {slot.layer} of {slot.source!r}, "
                f"but the models have layers 0 to {layout.layers - 1}"
            )


def _rule(merge: Merge, layout: Layout, recipe: Recipe) -> MergeRule:
    where = f"recipe: {merge_name(merge)}"
    groups = list(layout.outside_groups)
    if merge.slot is not None:
        tensors = layout.tensors_of_layer(recipe.path[merge.slot].layer)
        groups = ["layer", *layout.modules, *(tensor.suffix for tensor in tensors)]
    if merge.group not in groups:
        raise InputError(f"{where}: the model has no such group; it has {', '.join(groups)}")
    method = find_method(merge.method, where)
    ordered = [name for name in recipe.sources if name in merge.experts]
    experts = {name: merge.experts[name] for name in ordered}
    check_sparsifiable(method, merge)
    if merge.pieces:
        method.check_pieces(where)
    sparsify = merge.sparsifier if merge.sparsifier and merge.sparsifier.density < 1 else None
    arguments = method.arguments(merge.parameters, experts, where)
    aim = merge.aim if merge.aim and merge.aim.omega < 1 else None
    pieces = tuple(
        method.arguments(
            one.parameters, {n: one.experts[n] for n in ordered}, f"{where}, piece {i}"
        )
        for i, one in enumerate(merge.of_pieces() if merge.pieces else ())
    )
    return MergeRule(method, tuple(ordered), arguments, sparsify, aim, pieces)


def as_tensors(value: Any) -> Any:
    """Turn numbers, alone or in sequences, into float32 tensors of shape () or (n,)."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32)
    if isinstance(value, dict):
        return {key: as_tensors(entry) for key, entry in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*map(as_tensors, value))
    if isinstance(value, list) and value and isinstance(value[0], float):
        return torch.tensor(value, dtype=torch.float32)
    return [as_tensors(entry) for entry in value] if isinstance(value, list) else value
