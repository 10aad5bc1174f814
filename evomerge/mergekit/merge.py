"""What a mergekit file says, and the recipe it is over models of a given layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import InputError
from evomerge.mergekit.methods import BASE_WEIGHT, TASK_VECTORS, Pairing, Parameter, pairings
from evomerge.mergekit.settings import Setting, Value, depth, evaluate
from evomerge.recipe.recipe import BASE, Merge, Recipe, Slot

if TYPE_CHECKING:
    from evomerge.models.layout import Layout, TensorSpec

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class LayerSpan:
    """Consecutive layers of the result, each merged from the same layer of each of its models.

    Attributes:
        start: the models' layer that the first is made of.
        layers: how many; None for all of the model's.
        models: name → the settings of this model alone.
        settings: those of the whole stretch.
    """

    start: int
    layers: int | None
    models: Mapping[str, Settings]
    settings: Settings


@dataclass(frozen=True)
class _Made:
    """How one tensor is made: by a method, or (method None) as `source`'s own."""

    method: str | None
    experts: dict[str, dict[str, float]]
    parameters: dict[str, bool | float | str]
    source: str = BASE


@dataclass(frozen=True)
class _Place:
    """A tensor of the result: where its settings stand, and what filters are matched against.

    Attributes:
        t: depth in the stretch.
        slot: index in the path, None outside the layers.
        name: what the result calls it; settings of all models go by it, those of one model by
            the name that the models have (`spec.name`).
    """

    spec: TensorSpec
    stretch: LayerSpan
    t: float
    slot: int | None
    name: str


@dataclass(frozen=True)
class MergekitMerge:
    """What a mergekit file says, before the models are known.

    Attributes:
        models: source name → folder or hub id as the file has it, the base first. Experts are
            called by the last part of their path.
        weights: the dtype of the result: "checkpoint" for the base's.
        notes: where evomerge's result may differ from mergekit's, one line each.
        tokenizer: the source whose tokenizer and generation settings the result has.
        chat_template: a Jinja template instead of the tokenizer's, or "auto" for the one that most
            of the models have.
        name: what later stages of the file call its result.
    """

    where: str
    models: Mapping[str, str]
    weights: str
    notes: tuple[str, ...]
    method: str
    settings: Settings
    stretches: tuple[LayerSpan, ...]
    tokenizer: str = BASE
    chat_template: str | None = None
    name: str | None = None

    def recipe(self, layout: Layout, digests: Mapping[str, str], seed: int = 0) -> Recipe:
        """The recipe over models of this layout.

        Args:
            digests: source name → content digest, for the names of `models`.
            seed: keys the random masks.

        Raises:
            InputError: a slice names layers the models do not have, a filter separates tensors of
                one group outside the layers, or a needed parameter is missing for some tensor.
        """
        places = list(self._places(layout))
        made = [self._made(place) for place in places]
        copies = [_as_copy(each) for each in made]
        if all(copies):  # else a weight of 0 here and there would make a path of a merge
            made = [copy for copy in copies if copy is not None]
        groups = self._groups(places, made)
        slots, merges = [], [merge for key, one in groups.items() if (merge := _merge(key, one))]
        for index, layer in self._layers(layout):
            whole = groups.get((index, "layer"))
            source = BASE if whole is None or whole.method else whole.source
            slots.append(Slot(source=source, layer=layer))
        return Recipe(
            sources={name: digests[name] for name in self.models},
            path=tuple(slots),
            merges=tuple(merges),
            seed=seed,
        )

    def _layers(self, layout: Layout) -> Iterator[tuple[int, int]]:
        """The slots of the path and the layers that fill them."""
        layers = (
            stretch.start + index
            for stretch in self.stretches
            for index in range(stretch.layers or layout.layers)
        )
        return enumerate(layers)

    def _places(self, layout: Layout) -> Iterator[_Place]:
        """Every tensor of the result.

        Embeddings belong to the first stretch, the last norm and the head to the last, all at 0.
        """
        slot = 0
        for stretch in self.stretches:
            layers = layout.layers if stretch.layers is None else stretch.layers
            if stretch.start + layers > layout.layers:
                raise InputError(
                    f"{self.where}: layer_range [{stretch.start}, {stretch.start + layers}]: the "
                    f"models have layers 0 to {layout.layers - 1}"
                )
            for index in range(layers):
                for spec in layout.tensors_of_layer(stretch.start + index):
                    name = f"{layout.prefix}.{slot}.{spec.suffix}"
                    yield _Place(spec, stretch, depth(index, layers), slot, name)
                slot += 1
        for spec in layout.tensors:
            if spec.layer is None:
                stretch = self.stretches[0 if spec.group == "embeddings" else -1]
                yield _Place(spec, stretch, 0.0, None, spec.name)

    def _groups(
        self, places: Sequence[_Place], made: Sequence[_Made]
    ) -> Mapping[tuple[int | None, str], _Made]:
        """(slot, group) → how it is made: a whole layer where its tensors agree, else a module
        where its do, else each tensor.
        """
        slots: dict[int | None, dict[TensorSpec, _Made]] = {}
        for place, one in zip(places, made, strict=True):
            slots.setdefault(place.slot, {})[place.spec] = one
        found: dict[tuple[int | None, str], _Made] = {}
        for slot, own in slots.items():
            if slot is not None and _agree(own.values()):
                found[slot, "layer"] = next(iter(own.values()))
                continue
            for group in dict.fromkeys(spec.group for spec in own):
                inside = {spec: one for spec, one in own.items() if spec.group == group}
                if _agree(inside.values()):
                    found[slot, group] = next(iter(inside.values()))
                elif slot is None:
                    raise InputError(
                        f"{self.where}: a filter tells {' from '.join(s.name for s in inside)}; "
                        f"evomerge merges {group} as a whole"
                    )
                else:
                    found.update({(slot, spec.suffix): one for spec, one in inside.items()})
        return found

    @cached_property
    def _pairing(self) -> Pairing:
        return pairings()[self.method]

    def _made(self, place: _Place) -> _Made:
        """The values of one tensor, in evomerge's terms."""
        form, ours = self._pairing.form, self._pairing.ours
        stretch = place.stretch
        parameters: dict[str, bool | float | str] = {
            ours[name]: self._value(parameter, name, place.name, place.t, [stretch.settings])
            for name, parameter in form.shared.items()
            if name in ours
        }
        parameters |= self._pairing.neutral
        for name, choices in self._pairing.choices.items():
            parameters[name] = self._choice(choices, place)
        if TASK_VECTORS in self._pairing.method.parameters:
            parameters[TASK_VECTORS] = BASE in stretch.models
        inputs: dict[str, dict[str, float]] = {}
        for model, own in stretch.models.items():
            if model == BASE and (form.base == "needed" or self._pairing.needs_no_base):
                continue
            scopes = [own, stretch.settings]
            inputs[model] = {
                ours[name]: self._value(parameter, name, place.spec.name, place.t, scopes)
                for name, parameter in form.per_model.items()
                if name in ours
            }
        if self.method == "passthrough":
            [(source, values)] = inputs.items()
            return _passed(source, values["scale"])
        if self._pairing.weighs_base:
            parameters[BASE_WEIGHT] = inputs.pop(BASE, {"weight": 0.0})["weight"]
        return _Made(self._pairing.method.name, inputs, parameters)

    def _choice(self, values: Mapping[str, Mapping[str, bool]], place: _Place) -> str:
        """Which of evomerge's values mergekit's switches stand for."""
        shared, scopes = self._pairing.form.shared, [place.stretch.settings]
        names = dict.fromkeys(name for switches in values.values() for name in switches)
        found = {n: self._value(shared[n], n, place.name, place.t, scopes) for n in names}
        for value, switches in values.items():
            if all(found[name] == wanted for name, wanted in switches.items()):
                return value
        asked = ", ".join(f"{name}: {str(value).lower()}" for name, value in found.items())
        raise InputError(
            f"{self.where}: parameters: {asked}: evomerge's {self.method} does none of this; "
            "leave it out, or choose another method"
        )

    def _value(
        self, parameter: Parameter, name: str, tensor: str, t: float, scopes: Sequence[Settings]
    ) -> Value:
        """A parameter from the innermost scope that has a value for the tensor."""
        for scope in (*scopes, self.settings):
            value = evaluate(scope[name], tensor, t) if name in scope else None
            if value is not None:
                return value if parameter.type is bool else float(value)
        if parameter.default is None:
            raise InputError(f"{self.where}: parameters: {name!r} is missing for {tensor}")
        return parameter.default if parameter.type is bool else float(parameter.default)


def _agree(made: Iterable[_Made]) -> bool:
    first, *others = made
    return all(one == first for one in others)


def _passed(source: str, scale: float) -> _Made:
    if scale == 1:
        return _Made(None, {}, {}, source)
    return _Made("passthrough", {} if source == BASE else {source: {}}, {"scale": scale})


def _as_copy(made: _Made) -> _Made | None:
    """The tensor as one source's own times a number, if that is all that is asked for."""
    if made.method != "linear":
        return made if made.method in (None, "passthrough") else None
    weights: dict[str, Any] = {BASE: made.parameters[BASE_WEIGHT]}
    weights |= {name: values["weight"] for name, values in made.experts.items()}
    used = {name: weight for name, weight in weights.items() if weight != 0}
    if len(used) != 1:
        return None
    [(source, weight)] = used.items()
    return _passed(source, 1.0 if made.parameters["normalize"] else float(weight))


def _merge(key: tuple[int | None, str], made: _Made) -> Merge | None:
    """The merge of one group; None where the recipe copies it without being told."""
    slot, group = key
    if made.method is None:
        if made.source == BASE or group == "layer":
            return None
        made = replace(
            made, method="passthrough", experts={made.source: {}}, parameters={"scale": 1.0}
        )
    assert made.method is not None
    return Merge(
        slot=slot,
        group=group,
        method=made.method,
        experts=made.experts,
        parameters=made.parameters,
    )
