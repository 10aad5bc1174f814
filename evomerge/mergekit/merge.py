"""Turn a merge read from a mergekit file into a recipe over models of a given layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import InputError
from evomerge.config import TokenizerConfig
from evomerge.mergekit.methods import BASE_WEIGHT, TASK_VECTORS, Pairing, Parameter, readable
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
        layers: number of layers; None for all of the model's.
        models: name → the settings of this model alone.
        settings: settings of the whole span.
    """

    start: int
    layers: int | None
    models: Mapping[str, Settings]
    settings: Settings


@dataclass(frozen=True)
class _TensorMerge:
    """How one tensor is made: by a method, or (method None) as a copy of `source`'s."""

    method: str | None
    experts: dict[str, dict[str, float]]
    parameters: dict[str, bool | float | str]
    source: str = BASE


@dataclass(frozen=True)
class _ResultTensor:
    """A tensor of the result, with its settings and the names that their filters are matched with.

    Attributes:
        spec: its place in the models; settings of one model are matched with `spec.name`.
        t: depth in the span, in [0, 1].
        slot: index in the path, None outside the layers.
        name: its name in the result; settings of all models are matched with it.
    """

    spec: TensorSpec
    span: LayerSpan
    t: float
    slot: int | None
    name: str


@dataclass(frozen=True)
class MergekitMerge:
    """A merge as a mergekit file has it, before the models are known.

    Attributes:
        where: the file, for messages.
        models: source name → folder or hub id as the file has it, the base first. Experts are
            called by the last part of their path.
        weights: the dtype of the result: "checkpoint" for the base's.
        notes: differences between evomerge's result and mergekit's, one line each.
        method: the method's name, mergekit's or, where mergekit lacks it, evomerge's.
        settings: parameters of the whole file.
        spans: the result's layers, in order.
        tokenizer: the tokens that the result shall have; None for the base's, unmatched.
        chat_template: a Jinja template, its file or a name that stands for one, in place of the
            tokenizer's; "auto" for the one that most of the models have.
        name: the name by which later stages of the file know its result.
    """

    where: str
    models: Mapping[str, str]
    weights: str
    notes: tuple[str, ...]
    method: str
    settings: Settings
    spans: tuple[LayerSpan, ...]
    tokenizer: TokenizerConfig | None = None
    chat_template: str | None = None
    name: str | None = None

    def recipe(self, layout: Layout, digests: Mapping[str, str], seed: int = 0) -> Recipe:
        """Make the recipe over models of this layout.

        Args:
            digests: source name → content digest, for the names of `models`.
            seed: keys the random masks.

        Raises:
            InputError: a slice names layers the models do not have, a filter separates tensors of
                one group outside the layers, or a needed parameter is missing for some tensor.
        """
        # 1. how each tensor of the result is made
        places = list(self._result_tensors(layout))
        made = [self._tensor_merge(place) for place in places]
        copies = [_as_copy(each) for each in made]
        if all(copies):  # else a weight of 0 here and there would make a path of a merge
            made = [copy for copy in copies if copy is not None]
        # 2. tensors that agree in one merge: a layer, a module, or each tensor by itself
        groups = self._groups(places, made)
        slots, merges = [], [merge for key, one in groups.items() if (merge := _merge(key, one))]
        # 3. the path: the source of each slot is that of its copied tensors
        for index, layer in self._layers(layout):
            whole = groups.get((index, "layer"))
            source = BASE if whole is None or whole.method else whole.source
            slots.append(Slot(source=source, layer=layer))
        return Recipe(
            sources={name: digests[name] for name in self.models},
            path=tuple(slots),
            merges=tuple(merges),
            seed=seed,
            tokenizer=self.tokenizer,
        )

    def _layers(self, layout: Layout) -> Iterator[tuple[int, int]]:
        """Yield the slots of the path and the layers that fill them."""
        layers = (
            span.start + index
            for span in self.spans
            for index in range(span.layers or layout.layers)
        )
        return enumerate(layers)

    def _result_tensors(self, layout: Layout) -> Iterator[_ResultTensor]:
        """Yield every tensor of the result.

        Embeddings belong to the first span, the last norm and the head to the last, all at 0.
        """
        slot = 0
        for span in self.spans:
            layers = layout.layers if span.layers is None else span.layers
            if span.start + layers > layout.layers:
                raise InputError(
                    f"{self.where}: layer_range [{span.start}, {span.start + layers}]: the "
                    f"models have layers 0 to {layout.layers - 1}"
                )
            for index in range(layers):
                for spec in layout.tensors_of_layer(span.start + index):
                    name = f"{layout.prefix}.{slot}.{spec.suffix}"
                    yield _ResultTensor(spec, span, depth(index, layers), slot, name)
                slot += 1
        for spec in layout.tensors:
            if spec.layer is None:
                span = self.spans[0 if spec.group == "embeddings" else -1]
                yield _ResultTensor(spec, span, 0.0, None, spec.name)

    def _groups(
        self, places: Sequence[_ResultTensor], made: Sequence[_TensorMerge]
    ) -> Mapping[tuple[int | None, str], _TensorMerge]:
        """Map (slot, group) → how it is made: a layer, else a module, if its tensors agree, else
        each tensor.
        """
        slots: dict[int | None, dict[TensorSpec, _TensorMerge]] = {}
        for place, one in zip(places, made, strict=True):
            slots.setdefault(place.slot, {})[place.spec] = one
        found: dict[tuple[int | None, str], _TensorMerge] = {}
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
        return readable()[self.method]

    def _tensor_merge(self, place: _ResultTensor) -> _TensorMerge:
        """Evaluate every setting for one tensor, under evomerge's names."""
        form, ours = self._pairing.form, self._pairing.ours
        span = place.span
        parameters: dict[str, bool | float | str] = {
            ours[name]: self._value(parameter, name, place.name, place.t, [span.settings])
            for name, parameter in form.shared.items()
            if name in ours
        }
        parameters |= self._pairing.neutral
        for name, choices in self._pairing.choices.items():
            parameters[name] = self._choice(choices, place)
        if self._pairing.tells_task_vectors:
            parameters[TASK_VECTORS] = BASE in span.models
        inputs: dict[str, dict[str, float]] = {}
        for model, own in span.models.items():
            if model == BASE and (form.base == "needed" or self._pairing.needs_no_base):
                continue
            scopes = [own, span.settings]
            inputs[model] = {
                ours[name]: float(
                    self._value(parameter, name, place.spec.name, place.t, scopes, model)
                )
                for name, parameter in form.per_model.items()
                if name in ours
            }
        if self.method == "passthrough":
            [(source, values)] = inputs.items()
            return _passed(source, values["scale"])
        if self._pairing.weighs_base:
            parameters[BASE_WEIGHT] = inputs.pop(BASE, {"weight": 0.0})["weight"]
        return _TensorMerge(self._pairing.method.name, inputs, parameters)

    def _choice(self, values: Mapping[str, Mapping[str, bool]], place: _ResultTensor) -> str:
        """Find the value of evomerge's that mergekit's switches stand for."""
        shared, scopes = self._pairing.form.shared, [place.span.settings]
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
        self,
        parameter: Parameter,
        name: str,
        tensor: str,
        t: float,
        scopes: Sequence[Settings],
        model: str | None = None,
    ) -> Value:
        """Evaluate a parameter in the innermost scope that has a value for the tensor."""
        for scope in (*scopes, self.settings):
            value = evaluate(scope[name], tensor, t) if name in scope else None
            if value is not None:
                return value if parameter.type in (bool, str) else float(value)
        if parameter.default is None:
            whose = f"{model} ({self.models[model]}), tensor " if model else ""
            raise InputError(f"{self.where}: parameters: {name!r} is missing for {whose}{tensor}")
        default = parameter.default
        return default if parameter.type in (bool, str) else float(default)


def _agree(made: Iterable[_TensorMerge]) -> bool:
    first, *others = made
    return all(one == first for one in others)


def _passed(source: str, scale: float) -> _TensorMerge:
    if scale == 1:
        return _TensorMerge(None, {}, {}, source)
    return _TensorMerge("passthrough", {} if source == BASE else {source: {}}, {"scale": scale})


def _as_copy(made: _TensorMerge) -> _TensorMerge | None:
    """Return a linear merge as one source's tensor times a number, if no other has a weight."""
    if made.method != "linear":
        return made if made.method in (None, "passthrough") else None
    weights: dict[str, Any] = {BASE: made.parameters[BASE_WEIGHT]}
    weights |= {name: values["weight"] for name, values in made.experts.items()}
    used = {name: weight for name, weight in weights.items() if weight != 0}
    if len(used) != 1:
        return None
    [(source, weight)] = used.items()
    return _passed(source, 1.0 if made.parameters["normalize"] else float(weight))


def _merge(key: tuple[int | None, str], made: _TensorMerge) -> Merge | None:
    """Make the merge of one group; None where the recipe copies it without a merge."""
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
