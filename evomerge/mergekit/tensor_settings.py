"""Find what mergekit must be told of each tensor of a recipe: a method and values, or a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from evomerge.mergekit.methods import BASE_WEIGHT, FORMS, TASK_VECTORS, Pairing, pairings
from evomerge.mergekit.settings import Value, inexpressible
from evomerge.methods import find_method
from evomerge.methods.core.sparsify_in_recipes import as_one_method
from evomerge.recipe.recipe import BASE, Merge, Recipe, merge_name

if TYPE_CHECKING:
    from evomerge.models.layout import Layout, TensorSpec


class MergeMode(NamedTuple):
    """How one mergekit document merges.

    Attributes:
        method: mergekit's.
        models: the models it merges, the base first where there is one; None for a method that
            leaves out every model of weight 0, so that each tensor has models of its own.
    """

    method: str
    models: tuple[str, ...] | None = None

    def can_copy(self, copy: TensorSettings) -> bool:
        """Tell whether this mode can leave a tensor as one model has it, times a number."""
        if self.method == "linear":
            return True
        if copy.scale != 1:
            return False
        if self.method == "slerp":
            return self.models is not None and copy.source in self.models
        return self.models is None and "lambda" in FORMS[self.method].shared


@dataclass(frozen=True)
class TensorSettings:
    """How the recipe makes one tensor: merged by `mode`, or copied.

    Attributes:
        mode: None for a copy of `source`'s tensor times `scale`.
        per_model: (source, mergekit's parameter) → value; parameters that do not matter are absent.
        shared: mergekit's parameter → value.
    """

    mode: MergeMode | None
    per_model: Mapping[tuple[str, str], Value] = field(default_factory=dict)
    shared: Mapping[str, Value] = field(default_factory=dict)
    source: str = BASE
    scale: float = 1.0

    def merged_by(self, mode: MergeMode) -> TensorSettings:
        """Return settings by which a merge of `mode` makes this tensor, if it is a copy."""
        if self.mode is not None:
            return self
        per_model: dict[tuple[str, str], Value] = {}
        shared: dict[str, Value] = {}
        if mode.method == "linear":
            per_model[self.source, "weight"] = self.scale
            shared["normalize"] = False
        elif mode.method == "passthrough":
            per_model[self.source, "scale"] = self.scale
        elif mode.models is not None:  # slerp: one end of the arc
            shared["t"] = float(mode.models.index(self.source))
        elif self.source != BASE:  # task vectors: base + 1 · (source − base)
            per_model[self.source, "weight"] = 1.0
            shared["lambda"] = 1.0
            if "density" not in FORMS[mode.method].idle:
                per_model[self.source, "density"] = 1.0
        return TensorSettings(mode, per_model, shared, self.source, self.scale)


Tensors = Sequence[tuple[int | None, "TensorSpec", TensorSettings | None]]
"""The tensors of a result: slot (None outside the layers), place in the models, settings (None:
anything will do)."""


def tensor_settings(
    recipe: Recipe, layout: Layout
) -> list[tuple[int | None, TensorSpec, TensorSettings]]:
    """List every tensor of the result with its slot and settings, in the layout's order.

    Raises:
        InputError: a merge has a method or a parameter that mergekit lacks.
    """
    merged = {(merge.slot, merge.group): _settings_of(merge, recipe) for merge in recipe.merges}
    found: list[tuple[int | None, TensorSpec, TensorSettings]] = []
    for index, slot in enumerate(recipe.path):
        copied = TensorSettings(None, source=slot.source)
        for spec in layout.tensors_of_layer(slot.layer):
            own = (merged[index, group] for group in spec.groups if (index, group) in merged)
            found.append((index, spec, next(own, copied)))
    for spec in layout.tensors:
        if spec.layer is None:
            found.append((None, spec, merged.get((None, spec.group), TensorSettings(None))))
    return found


def _settings_of(merge: Merge, recipe: Recipe) -> TensorSettings:
    """Fill in a merge's defaults and name its method and parameters as mergekit does."""
    where = f"recipe: {merge_name(merge)}"
    if merge.pieces:
        raise inexpressible(
            f"mergekit has one coefficient for a whole tensor, and the {merge_name(merge)} has "
            f"{len(merge.pieces)} pieces (space.weights.chunks); export a checkpoint, or "
            "recipe.json (--format recipe), which evomerge merge reads"
        )
    if merge.aim is not None:
        raise inexpressible(
            "mergekit has no AIM, which changes weights less where activations are large; "
            "recipe.json says it (--format recipe)"
        )
    if merge.sparsifier is not None:
        merge = _as_one_method(merge, merge.sparsifier.kind)
    # 1. evomerge's method and all its values
    method = find_method(merge.method, where)
    ordered = {name: merge.experts[name] for name in recipe.sources if name in merge.experts}
    method.arguments(merge.parameters, ordered, where)
    defaults = {p.name: p.default for p in method.parameters.values() if not p.per_expert}
    parameters = {**defaults, **merge.parameters}
    if method.name == "passthrough":
        source = next(iter(ordered), BASE)
        return TensorSettings(None, source=source, scale=float(parameters["scale"]))
    # 2. mergekit's method; what it lacks must have the value that means what mergekit does
    pairing = pairings().get(method.name)
    if pairing is None:
        raise inexpressible(
            f"{method.name} is evomerge's own method, which mergekit lacks; recipe.json says it "
            f"(--format recipe), and evomerge merge reads merge_method: {method.name} in a file of "
            "mergekit's form"
        )
    asked: list[Mapping[str, Any]] = [parameters, *ordered.values()]
    for name, neutral in pairing.extra.items():
        if any(values.get(name, neutral) != neutral for values in asked):
            raise inexpressible(
                f"mergekit's {pairing.name} has no parameter {name!r} like evomerge's and does "
                f"what {neutral} means"
            )
    # 3. the values under mergekit's names
    own = {p.name: p.default for p in method.parameters.values() if p.per_expert}
    per_model: dict[tuple[str, str], Value] = {
        (expert, theirs): float(values.get(ours, own[ours]))
        for expert, values in ordered.items()
        for ours, theirs in pairing.theirs.items()
        if ours in own
    }
    shared: dict[str, Any] = {
        theirs: parameters[ours] for ours, theirs in pairing.theirs.items() if ours not in own
    }
    for name, values in pairing.choices.items():
        shared |= values[str(parameters[name])]
    if pairing.weighs_base:
        per_model[BASE, "weight"] = float(parameters[BASE_WEIGHT])
    models = _models(pairing, list(ordered), bool(parameters.get(TASK_VECTORS, True)))
    return TensorSettings(MergeMode(pairing.name, models), per_model, shared)


def _as_one_method(merge: Merge, kind: str) -> Merge:
    if (found := as_one_method(merge)) is not None:
        return found
    if kind == "dare":
        raise inexpressible(
            f"{merge_name(merge)} drops entries at random before {merge.method}; mergekit does so "
            "in dare_linear and dare_ties only, that is before task_arithmetic, and before ties of "
            "density 1, with rescale density or l1"
        )
    raise inexpressible(
        f"{merge_name(merge)} drops entries ({kind}) before {merge.method}; mergekit does so "
        "before task_arithmetic, and before ties of density 1, only"
    )


def _models(pairing: Pairing, experts: list[str], task_vectors: bool) -> tuple[str, ...] | None:
    """Return the models of a merge as `MergeMode.models` has them."""
    if pairing.form.inputs == (2, 2):
        return (BASE, *experts)[-2:]
    if pairing.drops_zero_weights:
        return None
    if not task_vectors:
        return tuple(experts)
    if pairing.form.base == "ignored":
        raise inexpressible(f"mergekit's {pairing.name} merges models, not task vectors")
    return (BASE, *experts)
