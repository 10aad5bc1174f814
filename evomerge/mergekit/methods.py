"""Pair mergekit's merge methods and their parameters with evomerge's.

Methods and parameters correspond by their names, and nothing needs to be added here when evomerge
gains a method, of mergekit's or its own. A method that mergekit lacks (`tsvm`, `wudi`, …) may stand
in a file of its form, with evomerge's parameters and defaults; mergekit does not read such a file.
A parameter that evomerge's method lacks is read only with mergekit's default; one that mergekit's
method lacks is written only where it has the value that means what mergekit does. `FORMS` states
what mergekit 0.1.5 takes (tests compare it with mergekit itself); `RENAMED`, `CHOICES` and
`NEUTRAL` are the exceptions to the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from evomerge.mergekit.settings import Kind, Value
from evomerge.methods import Method, methods

BASE_WEIGHT = "base_weight"
"""evomerge's name for the weight of the base, in methods that take the base as one more input."""

TASK_VECTORS = "task_vectors"
"""The switch of an evomerge method that merges task vectors where mergekit is given a base_model,
and the models themselves where it is not."""


@dataclass(frozen=True)
class Parameter:
    """A method's parameter in a file: its type, and its default (None: it must be given)."""

    type: Kind
    default: Value | None = None


@dataclass(frozen=True)
class Form:
    """The parameters and models that a method takes in a file of mergekit's form.

    Attributes:
        per_model: parameters with a value for each model.
        shared: parameters with one value.
        base: `needed` among the models, `optional` there, or `ignored`: a model like the others.
        inputs: the fewest and the most models (None: any number), the base among them included.
        idle: parameters that do not change the result.
        random: mergekit draws masks from a global generator.
    """

    per_model: Mapping[str, Parameter]
    shared: Mapping[str, Parameter]
    base: Literal["needed", "optional", "ignored"]
    inputs: tuple[int, int | None] = (1, None)
    idle: frozenset[str] = frozenset()
    random: bool = False


def _number(default: float | None = None) -> Parameter:
    return Parameter(float, default)


def _switch(default: bool) -> Parameter:
    return Parameter(bool, default)


def _task_vectors(
    normalize: bool,
    rescale: bool = False,
    *,
    idle: tuple[str, ...] = (),
    random: bool = False,
    **more: float,
) -> Form:
    per_model = {"weight": _number(), "density": _number(1.0)}
    per_model |= {name: _number(default) for name, default in more.items()}
    shared = {
        "int8_mask": _switch(False),
        "normalize": _switch(normalize),
        "rescale": _switch(rescale),
        "lambda": _number(1.0),
    }
    return Form(per_model, shared, "needed", (1, None), frozenset({"int8_mask", *idle}), random)


def _ram(**shared: float) -> Form:
    return Form({}, {name: _number(value) for name, value in shared.items()}, "needed")


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "linear": Form({"weight": _number()}, {"normalize": _switch(True)}, "ignored"),
        "slerp": Form({}, {"t": _number()}, "needed", (2, 2)),
        "nuslerp": Form(
            {"weight": _number()},
            {"nuslerp_row_wise": _switch(False), "nuslerp_flatten": _switch(True)},
            "optional",
            (2, 3),
        ),
        "multislerp": Form(
            {"weight": _number()},
            {"normalize_weights": _switch(True), "eps": _number(1e-8)},
            "optional",
        ),
        "karcher": Form({}, {"max_iter": Parameter(int, 10), "tol": _number(1e-5)}, "ignored"),
        "passthrough": Form({"scale": _number(1.0)}, {}, "ignored", (1, 1)),
        "task_arithmetic": _task_vectors(False, idle=("density", "rescale")),
        "ties": _task_vectors(True),
        "dare_linear": _task_vectors(False, True, random=True),
        "dare_ties": _task_vectors(False, True, random=True),
        "della": _task_vectors(True, True, random=True, epsilon=0.15),
        "della_linear": _task_vectors(False, True, random=True, epsilon=0.15),
        "breadcrumbs": _task_vectors(False, gamma=0.01),
        "breadcrumbs_ties": _task_vectors(False, gamma=0.01),
        "sce": Form(
            {},
            {"int8_mask": _switch(False), "select_topk": _number(1.0)},
            "needed",
            idle=frozenset({"int8_mask"}),
        ),
        "model_stock": Form({}, {"filter_wise": _switch(False)}, "needed", (3, None)),
        "nearswap": Form({}, {"t": _number()}, "needed", (2, 2)),
        "arcee_fusion": Form({}, {}, "needed", (2, 2)),
        "ram": _ram(epsilon=1e-5),
        "ramplus_tl": _ram(r=0.1, alpha=0.2, epsilon=1e-5),
    }
)
"""Every method of mergekit 0.1.5 with its defaults, which are not all evomerge's."""

RENAMED: Mapping[tuple[str, str], str] = MappingProxyType(
    {("multislerp", "normalize_weights"): "normalize"}
)
"""(method, mergekit's parameter) → evomerge's parameter, where the names differ."""

_L1 = {"rescale": True}
_ALONG = {
    "tensor": {"nuslerp_flatten": True},
    "rows": {"nuslerp_flatten": False, "nuslerp_row_wise": False},
    "columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
}
_PRUNED = {"l1": _L1, "none": {"rescale": False}, "probability": _L1}

CHOICES: Mapping[tuple[str, str], Mapping[str, Mapping[str, bool]]] = MappingProxyType(
    {
        ("dare_linear", "rescale"): {"l1": _L1, "density": _L1},
        ("dare_ties", "rescale"): {"l1": _L1, "density": _L1},
        ("della", "rescale"): _PRUNED,
        ("della_linear", "rescale"): _PRUNED,
        ("nuslerp", "along"): _ALONG,
    }
)
"""(method, evomerge's parameter) → each of its values → mergekit's switches, the nearest where
none is the same; of values with the same switches, the first is read."""

NEUTRAL: Mapping[tuple[str, str], Value | str] = MappingProxyType({})
"""(method, evomerge's parameter that mergekit lacks) → the value that means mergekit's
behaviour, where that is not evomerge's default."""


@dataclass(frozen=True)
class Pairing:
    """A method that both tools have, or that evomerge alone has.

    Attributes:
        name: mergekit's; evomerge's own where mergekit has none.
        form: the parameters and models that it takes in a file.
        method: evomerge's.
    """

    name: str
    form: Form
    method: Method

    @property
    def is_own(self) -> bool:
        """True where mergekit lacks the method: then its file is evomerge's own extension."""
        return self.name not in FORMS

    @cached_property
    def ours(self) -> Mapping[str, str]:
        """mergekit's parameter → evomerge's, for those that both have and that have an effect."""
        said = {p for values in self.choices.values() for v in values.values() for p in v}
        known = {**self.form.per_model, **self.form.shared}.keys() - self.form.idle - said
        names = {p: RENAMED.get((self.name, p), p) for p in sorted(known)}
        return {p: name for p, name in names.items() if name in self.method.parameters}

    @cached_property
    def choices(self) -> Mapping[str, Mapping[str, Mapping[str, bool]]]:
        """evomerge's parameter → its values → mergekit's switches."""
        return {
            name: values
            for (method, name), values in CHOICES.items()
            if method == self.name
            and name in self.method.parameters
            and self.method.parameters[name].type is str
        }

    @property
    def read(self) -> frozenset[str]:
        """mergekit's parameters that a recipe can follow."""
        said = (v.keys() for values in self.choices.values() for v in values.values())
        return frozenset(self.ours).union(*said)

    @cached_property
    def theirs(self) -> Mapping[str, str]:
        """evomerge's parameter → mergekit's."""
        return {name: p for p, name in self.ours.items()}

    @property
    def weighs_base(self) -> bool:
        """True where the base is an input like the others, with a parameter for its weight."""
        return not self.is_own and BASE_WEIGHT in self.method.parameters

    @property
    def tells_task_vectors(self) -> bool:
        """True where a base_model in the file says that task vectors are merged, not models."""
        return not self.is_own and TASK_VECTORS in self.method.parameters

    @property
    def needs_no_base(self) -> bool:
        """True where the method merges models alone, and has no place for a base among them."""
        passes = self.name == "passthrough"
        return not (passes or self.weighs_base or self.form.base == "needed")

    @property
    def drops_zero_weights(self) -> bool:
        """True where a model of weight 0 takes no part, as in every weighted sum."""
        return self.weighs_base or {"weight", "lambda"} <= {*self.form.per_model, *self.form.shared}

    @property
    def neutral(self) -> Mapping[str, Value | str]:
        """evomerge's parameter that mergekit lacks → the value a recipe must give it."""
        return {name: value for (method, name), value in NEUTRAL.items() if method == self.name}

    @property
    def extra(self) -> Mapping[str, Value | str]:
        """evomerge's parameters that mergekit lacks → the values that mean mergekit's behaviour."""
        return {
            name: NEUTRAL.get((self.name, name), parameter.default)
            for name, parameter in self.method.parameters.items()
            if name not in {*self.theirs, *self.choices, BASE_WEIGHT, TASK_VECTORS}
        }


def pairings() -> Mapping[str, Pairing]:
    """Map mergekit's name → the method of both tools, for those that evomerge has registered."""
    ours = methods()
    return {name: Pairing(name, form, ours[name]) for name, form in FORMS.items() if name in ours}


def readable() -> Mapping[str, Pairing]:
    """Map name → method for all that a file may name: those of both tools, then evomerge's own."""
    own = {name: method for name, method in methods().items() if name not in FORMS}
    return {**pairings(), **{n: Pairing(n, _own_form(method), method) for n, method in own.items()}}


def _own_form(method: Method) -> Form:
    """Make the form of a method that mergekit lacks: all its parameters, with its defaults."""
    known = method.parameters.values()
    least, most = method.experts
    return Form(
        {p.name: Parameter(p.type, p.default) for p in known if p.per_expert},
        {p.name: Parameter(p.type, p.default) for p in known if not p.per_expert},
        "needed",
        (least + 1, None if most is None else most + 1),
    )
