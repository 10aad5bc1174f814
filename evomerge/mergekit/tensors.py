"""A recipe tensor by tensor, as mergekit thinks of it: what it must be told of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evomerge.mergekit.methods import BASE_WEIGHT, TASK_VECTORS, Pairing, pairings
from evomerge.mergekit.settings import Value, depth
from evomerge.mergekit.values import Position, impossible
from evomerge.methods import find_method
from evomerge.methods.core.dare_in_recipes import as_dare_method
from evomerge.recipe.recipe import BASE, Merge, Recipe, merge_name

if TYPE_CHECKING:
    from evomerge.models.layout import Layout, TensorSpec


@dataclass(frozen=True)
class MergeMode:
    """How a document merges: by mergekit's `method` and, where none can be muted by a weight of 0,
    of which models, the base first where there is one.
    """

    method: str
    models: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TensorSettings:
    """How the recipe makes one tensor: by `way`, or (None) as `source`'s own times `scale`."""

    way: MergeMode | None
    experts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source: str = BASE
    scale: float = 1.0


Found = Sequence[tuple[int | None, "TensorSpec", TensorSettings | None]]
"""The tensors of the result: slot, place in the models, treatment (None: anything will do)."""


@dataclass(frozen=True)
class Run:
    """Slots whose layers follow each other: layers `start` up to, without, `stop`."""

    start: int
    stop: int


@dataclass
class Tensor:
    """One tensor of the result. Parameters that do not matter for it are not held.

    Attributes:
        inner: as the models have it; settings of one model go by that name.
        outer: as the result has it; settings of all models go by that one.
        run: index of the run that makes it.
        slot: index in the path, None outside the layers.
        treatment: None where anything will do.
        per_model: (source, parameter) → value.
    """

    inner: Position
    outer: Position
    group: str
    run: int
    slot: int | None
    treatment: TensorSettings | None
    per_model: dict[tuple[str, str], Value] = field(default_factory=dict)
    shared: dict[str, Value] = field(default_factory=dict)


def treatments(
    recipe: Recipe, layout: Layout
) -> list[tuple[int | None, TensorSpec, TensorSettings]]:
    """Every tensor of the result, by the slot that it stands in.

    Raises:
        InputError: a merge has a method or a parameter that mergekit lacks.
    """
    rules = {(merge.slot, merge.group): _treatment(merge, recipe) for merge in recipe.merges}
    found: list[tuple[int | None, TensorSpec, TensorSettings]] = []
    for index, slot in enumerate(recipe.path):
        plain = TensorSettings(None, source=slot.source)
        for spec in layout.tensors_of_layer(slot.layer):
            rule = next((rules[index, g] for g in spec.groups if (index, g) in rules), plain)
            found.append((index, spec, rule))
    for spec in layout.tensors:
        if spec.layer is None:
            found.append((None, spec, rules.get((None, spec.group), TensorSettings(None))))
    return found


def runs(layers: Sequence[int], sources: Sequence[str] | None) -> Iterator[Run]:
    """The path in runs; where `sources` (one a slot) is given, a run is of one source."""
    start = 0
    for index in range(1, len(layers) + 1):
        ends = index == len(layers) or layers[index] != layers[index - 1] + 1
        if ends or (sources is not None and sources[index] != sources[index - 1]):
            yield Run(layers[start], layers[index - 1] + 1)
            start = index


def place(found: Found, path: list[Run], prefix: str, tied: Mapping[str, str]) -> list[Tensor]:
    """Each tensor where mergekit makes it; tied names beside the tensor they share."""
    where = [(i, n, run) for i, run in enumerate(path) for n in range(run.stop - run.start)]
    treated = {spec.name: treatment for slot, spec, treatment in found if slot is None}
    tensors = []
    for slot, spec, treatment in found:
        if slot is None:
            tensors.append(_outside(spec.name, spec.group, treatment, len(path)))
            continue
        index, n, run = where[slot]
        t = depth(n, run.stop - run.start)
        inner, outer = (
            Position(f"{prefix}.{layer}.{spec.suffix}", layer, spec.suffix, t)
            for layer in (run.start + n, slot)
        )
        tensors.append(Tensor(inner, outer, spec.group, index, slot, treatment))
    for name, shared in tied.items():
        tensors.append(_outside(name, "head", treated[shared], len(path)))
    return tensors


def _outside(name: str, group: str, treatment: TensorSettings | None, count: int) -> Tensor:
    """Embeddings come with the first run, the last norm and the head with the last."""
    spot = Position(name, None, "", 0.0)
    run = 0 if group == "embeddings" else count - 1
    return Tensor(spot, spot, group, run, None, treatment)


def _treatment(merge: Merge, recipe: Recipe) -> TensorSettings:
    """A merge with the method's defaults filled in and named as mergekit does."""
    where = f"recipe: {merge_name(merge)}"
    if merge.drop is not None:
        merge = _as_dare_method(merge)
    method = find_method(merge.method, where)
    ordered = {name: merge.experts[name] for name in recipe.sources if name in merge.experts}
    method.arguments(merge.parameters, ordered, where)
    defaults = {p.name: p.default for p in method.parameters.values() if not p.per_expert}
    parameters = {**defaults, **merge.parameters}
    if method.name == "passthrough":
        source = next(iter(ordered), BASE)
        return TensorSettings(None, source=source, scale=float(parameters["scale"]))
    pairing = pairings().get(method.name)
    if pairing is None:
        raise impossible(f"mergekit has no method like evomerge's {method.name}")
    asked: list[Mapping[str, Any]] = [parameters, *ordered.values()]
    for name, neutral in pairing.extra.items():
        if any(values.get(name, neutral) != neutral for values in asked):
            raise impossible(
                f"mergekit's {pairing.name} has no parameter {name!r} like evomerge's and does "
                f"what {neutral} means"
            )
    own = {p.name: p.default for p in method.parameters.values() if p.per_expert}
    experts = {
        name: {t: float(values.get(o, own[o])) for o, t in pairing.theirs.items() if o in own}
        for name, values in ordered.items()
    }
    shared = {t: parameters[o] for o, t in pairing.theirs.items() if o not in own}
    for name, values in pairing.choices.items():
        shared |= values[str(parameters[name])]
    if pairing.weighs_base:
        experts[BASE] = {"weight": float(parameters[BASE_WEIGHT])}
    models = _models(pairing, list(ordered), bool(parameters.get(TASK_VECTORS, True)))
    return TensorSettings(MergeMode(pairing.name, models), experts, shared)


def _as_dare_method(merge: Merge) -> Merge:
    if (found := as_dare_method(merge)) is None:
        raise impossible(
            f"{merge_name(merge)} drops entries at random before {merge.method}; mergekit does so "
            "in dare_linear and dare_ties only, that is before task_arithmetic, and before ties of "
            "density 1, with rescale density or l1"
        )
    return found


def _models(pairing: Pairing, experts: list[str], task_vectors: bool) -> tuple[str, ...] | None:
    if pairing.form.inputs == (2, 2):
        return (BASE, *experts)[-2:]
    if pairing.mutes:
        return None
    if not task_vectors:
        return tuple(experts)
    if pairing.form.base == "ignored":
        raise impossible(f"mergekit's {pairing.name} merges models, not task vectors")
    return (BASE, *experts)
