"""The recipe: the whole truth about one candidate merge.

A recipe says which layer of which source fills each slot of the merged model (`path`), and how the
tensors of each slot are merged (`merges`). It holds the digests of the sources' contents, never
their paths, so that the same recipe over the same weights has the same digest everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from typing_extensions import override

from evomerge.common.data_files import json_data, read_text
from evomerge.common.digest import canonical_json, content_digest
from evomerge.common.errors import InputError
from evomerge.common.wrong_values import what_was_expected
from evomerge.config import Strict, TokenizerConfig

BASE = "base"
"""The base model's name among a recipe's sources; task vectors are taken against it."""

ExpertValues = dict[str, float]
"""The parameters of one expert in one merge: parameter name → value."""


class Slot(Strict):
    """One layer of the merged model: layer `layer` of `source`, its input multiplied by `scale`."""

    source: str
    layer: int = Field(ge=0)
    scale: float = 1.0


class Drop(Strict):
    """DARE: entries of the experts' task vectors dropped at random before the method merges them.

    An entry survives with probability `density`. `rescale` says what the survivors are multiplied
    by: 1/density, what gives a task vector its L1 norm back, or nothing. The masks are those of the
    method `dare_linear`. Source: Yu et al. 2024, arXiv:2311.03099, eq. 1.
    """

    kind: ClassVar[Literal["dare"]] = "dare"
    density: float = Field(gt=0, le=1)
    rescale: Literal["density", "l1", "none"] = "density"


class Magnitude(Strict):
    """The largest `density` share of each task vector by |τ|, as in TIES."""

    kind: Literal["magnitude"]
    density: float = Field(gt=0, le=1)


class Breadcrumbs(Strict):
    """A band of |τ|: without the largest share `gamma`, and then without the smallest entries."""

    kind: Literal["breadcrumbs"]
    density: float = Field(gt=0, le=1)
    gamma: float = Field(default=0.01, ge=0, le=1)


class Della(Strict):
    """Entries of a row at random, the larger rather: density ± `epsilon`, by rank (MagPrune)."""

    kind: Literal["della"]
    density: float = Field(gt=0, le=1)
    epsilon: float = Field(default=0.15, ge=0, le=0.5)
    rescale: Literal["probability", "l1", "none"] = "probability"


class FisherTrim(Strict):
    """The `density` share of each task vector of largest F ⊙ τ², F the expert's Fisher (FFG)."""

    kind: Literal["fisher"]
    density: float = Field(gt=0, le=1)


class Aim(Strict):
    """AIM: changes of weights whose inputs are large in the base are held back.

    Column j of a merged update is multiplied by 1 − ā_j(1 − `omega`), ā_j the base's mean |x_j|
    over its `quantile` (1: over the largest), 1 at most. Source: Nobari et al. 2025,
    arXiv:2502.02421.
    """

    omega: float = Field(ge=0, le=1)
    quantile: float = Field(default=1.0, gt=0, le=1)


Sparsifier = Drop | Magnitude | Breadcrumbs | Della | FisherTrim
"""A way to make task vectors sparse, and its parameters, the same for all experts."""


class Piece(Strict):
    """What one piece of a cut tensor has other than its merge says: values by expert, and shared.

    Source: chunked coefficients of Expert Merging++, Zhang et al. 2025, arXiv:2509.25712.
    """

    experts: dict[str, ExpertValues] = Field(default_factory=dict, exclude_if=lambda own: not own)
    parameters: dict[str, float] = Field(default_factory=dict, exclude_if=lambda own: not own)

    def has(self, expert: str | None, parameter: str) -> bool:
        """Tell whether it has a value of its own of an expert's parameter; None: a shared one."""
        return parameter in (self.parameters if expert is None else self.experts.get(expert, {}))


class Merge(Strict):
    """A merge method and its coefficients for one group of tensors of one slot.

    `group` is a tensor of a layer by its name within it ("self_attn.q_proj.weight"), a module
    ("attention", "mlp", "router", "norms", "other") for those of its tensors that have no merge of
    their own, "layer" for what then is left, or, with `slot: null`, a group outside the layers
    ("embeddings", "final_norm", "head"). `experts` are merged in the order in which the recipe's
    sources stand. Their task vectors are made sparse first where there is a `drop` (DARE), or a
    `sparsify` (of another kind): `sparsify: {kind: dare}` is read as the `drop` that it means, so
    that one merge has one digest. `aim` holds back what the method changes. With `pieces` each
    flattened tensor is cut in so many, as `torch.chunk` does: in equal ones, the last shorter.
    """

    slot: int | None = Field(ge=0)
    group: str
    method: str
    experts: dict[str, ExpertValues]
    parameters: dict[str, bool | float | str] = Field(default_factory=dict)
    drop: Drop | None = Field(default=None, exclude_if=lambda drop: drop is None)
    sparsify: (
        Annotated[Magnitude | Breadcrumbs | Della | FisherTrim, Field(discriminator="kind")] | None
    ) = Field(default=None, exclude_if=lambda sparsify: sparsify is None)
    aim: Aim | None = Field(default=None, exclude_if=lambda aim: aim is None)
    pieces: tuple[Piece, ...] = Field(default=(), exclude_if=lambda pieces: not pieces)

    @model_validator(mode="before")
    @classmethod
    def _dare_is_a_drop(cls, data: Any) -> Any:
        given = data.get("sparsify") if isinstance(data, dict) else None
        if not (isinstance(given, dict) and given.get("kind") == Drop.kind):
            return data
        if data.get("drop") is not None:
            raise ValueError("has a drop and sparsify: {kind: dare}, which are one thing; give one")
        drop = {key: value for key, value in given.items() if key != "kind"}
        return {**data, "drop": drop, "sparsify": None}

    @model_validator(mode="after")
    def _is_made_sparse_once(self) -> Self:
        if self.drop is not None and self.sparsify is not None:
            raise ValueError("has a drop and a sparsify; task vectors are made sparse once")
        return self

    @property
    def sparsifier(self) -> Sparsifier | None:
        """How task vectors are made sparse before the method merges them; None: they are not."""
        return self.drop or self.sparsify

    def of_pieces(self) -> list[Merge]:
        """Write the merge of each piece as one of whole tensors; itself, where it has none."""
        return [
            self.model_copy(
                update={
                    "experts": {
                        name: {**values, **own.experts.get(name, {})}
                        for name, values in self.experts.items()
                    },
                    "parameters": {**self.parameters, **own.parameters},
                    "pieces": (),
                }
            )
            for own in self.pieces
        ] or [self]


class Mixture(Strict):
    """The experts of a mixture merged into fewer, within every layer that has such (M-SMoE).

    `experts` is their number in each layer of the result. With `groups: weights` experts are
    grouped by what they give for random inputs, and count the same; with `router` by the base's
    router on its calibration texts, and count by how often it chooses them. The experts are those
    of the recipe's merge; groups and frequencies are the base's. `leads` names, for a layer,
    experts that lead a group whatever that says. Source: Li et al. 2023, arXiv:2310.01334.
    """

    experts: int = Field(ge=2)
    groups: Literal["weights", "router"] = "weights"
    leads: dict[int, tuple[int, ...]] = Field(
        default_factory=dict, exclude_if=lambda leads: not leads
    )


class MergeCoefficient(NamedTuple):
    """Names one number of a recipe: a parameter of the merge of `group` in `slot`.

    Attributes:
        expert: whose it is; None for one that experts share.
        parameter: the method's name for it.
        piece: index of the piece whose own it is; None for one of whole tensors.
    """

    slot: int | None
    group: str
    expert: str | None
    parameter: str
    piece: int | None = None


class Recipe(Strict):
    """A merge of `sources` (name → content digest), complete and frozen.

    Tensors of a slot that no merge names are copied from the slot's source; tensors outside the
    layers that no merge names are copied from the base model. `seed` keys the random masks.
    `tokenizer` says by which tokens the sources' vocabularies were matched, where they were; their
    digests are then over the matched rows, too. `calibration` has the digest of each source's
    calibration file that a merge needs (`evomerge calibrate`). `mixture` gives the merged model
    fewer experts, where it is a mixture of such.
    """

    version: Literal[1] = 1
    sources: dict[str, str]
    path: tuple[Slot, ...] = Field(min_length=1)
    merges: tuple[Merge, ...] = ()
    seed: int = 0
    tokenizer: TokenizerConfig | None = Field(
        default=None, exclude_if=lambda tokenizer: tokenizer is None
    )
    calibration: dict[str, str] = Field(default_factory=dict, exclude_if=lambda files: not files)
    mixture: Mixture | None = Field(default=None, exclude_if=lambda mixture: mixture is None)

    @field_validator("sources")
    @classmethod
    def _has_a_base(cls, sources: dict[str, str]) -> dict[str, str]:
        if BASE not in sources:
            raise ValueError(f"no source is called {BASE!r}")
        return sources

    @model_validator(mode="after")
    def _names_what_it_has(self) -> Self:
        known = f"its sources are {', '.join(self.sources)}"
        for index, slot in enumerate(self.path):
            if slot.source not in self.sources:
                raise ValueError(f"path[{index}] names source {slot.source!r}; {known}")
            if not math.isfinite(slot.scale):
                raise ValueError(f"path[{index}] has scale {slot.scale}; give a finite number")
        for key, name in self.tokenizer.models() if self.tokenizer else ():
            if name not in self.sources:
                raise ValueError(f"tokenizer.{key} names source {name!r}; {known}")
        for name in self.calibration:
            if name not in self.sources:
                raise ValueError(f"calibration names source {name!r}; {known}")
        seen = set()
        for merge in self.merges:
            where = merge_name(merge)
            parts: tuple[Merge | Piece, ...] = (merge, *merge.pieces)
            for one in parts:
                for expert, values in one.experts.items():
                    if expert not in self.sources or expert == BASE:
                        raise ValueError(f"{where} names expert {expert!r}; {known}")
                    if not all(math.isfinite(value) for value in values.values()):
                        raise ValueError(
                            f"{where} gives expert {expert!r} a value that is not finite"
                        )
                for name, value in one.parameters.items():
                    if isinstance(value, float) and not math.isfinite(value):
                        raise ValueError(f"{where}: {name} is {value}; give a finite number")
            for index, piece in enumerate(merge.pieces):
                if others := set(piece.experts) - set(merge.experts):
                    raise ValueError(
                        f"{where}: piece {index} names expert {min(others)!r}, which the merge "
                        "has not"
                    )
            if merge.slot is not None and merge.slot >= len(self.path):
                raise ValueError(f"{where}: the path has only {len(self.path)} slots")
            if (merge.slot, merge.group) in seen:
                raise ValueError(f"{where} stands twice")
            seen.add((merge.slot, merge.group))
        return self

    @cached_property
    def digest(self) -> str:
        """32 hex digits over everything that decides the result, in any order of keys and merges.

        The order of the sources counts: it is the order in which experts are merged. Sources that
        nothing is taken of do not count, so that a merge is known again beside other experts.
        """
        data = self.model_dump(mode="json")
        data["sources"] = [[name, self.sources[name]] for name in (BASE, *self.active_experts())]
        data["merges"] = sorted(data["merges"], key=canonical_json)
        return content_digest(data)

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("digest", None)  # pydantic copies what is cached, too
        return copy

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON data; `Recipe.from_json` reads the equal recipe back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Any, where: str = "recipe") -> Recipe:
        """Validate plain data as a recipe; `where` names its origin in messages.

        Raises:
            InputError: the data is not a recipe; one line per problem, with its place.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = [
                ": ".join([".".join(map(str, p["loc"])), _problem(p)]) for p in error.errors()
            ]
            raise InputError("\n".join(f"{where}: {p.lstrip(': ')}" for p in problems)) from None

    def active_experts(self) -> Iterator[str]:
        """Yield the experts that the path or a merge uses, in the sources' order."""
        used = {slot.source for slot in self.path}
        used.update(name for merge in self.merges for name in merge.experts)
        return (name for name in self.sources if name in used and name != BASE)


def _problem(found: Mapping[str, Any]) -> str:
    """Say in plain words what is wrong with a value of a recipe, given pydantic's entry."""
    if found["type"] == "missing":
        return "required, but not given; is it a recipe.json that evomerge wrote?"
    if found["type"] == "extra_forbidden":
        return "a key that recipes do not have"
    if found["type"] == "value_error":
        return str(found["msg"]).removeprefix("Value error, ")
    return what_was_expected([found])


def merge_name(merge: Merge) -> str:
    """Name a merge in messages: `merge of slot 3, attention`."""
    place = "outside the layers" if merge.slot is None else f"slot {merge.slot}"
    return f"merge of {place}, {merge.group}"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file.

    Raises:
        InputError: the file cannot be read, is not JSON or is not a recipe.
    """
    return Recipe.from_json(json_data(read_text(path), str(path)), str(path))
