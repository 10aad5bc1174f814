"""Sections of the campaign file: plugs, constraints, own metrics, the space, workers."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)


class Strict(BaseModel):
    """A frozen section of the campaign file that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class NegativeFlipsConfig(Strict):
    """At most this share of items at which `against` does better than the merge."""

    against: str
    at_most: float = Field(ge=0, le=1)
    task: str | None = None


class NotBelowConfig(Strict):
    """A task's mean lies no more than `by` below that of `model`: a parent, or the best one."""

    task: str
    model: str = "best_parent"
    by: float = Field(default=0.0, ge=0)


class ConstraintConfig(Strict):
    """One constraint, under its name."""

    negative_flips: NegativeFlipsConfig | None = None
    not_below: NotBelowConfig | None = None

    @model_validator(mode="after")
    def _is_one(self) -> ConstraintConfig:
        if (self.negative_flips is None) == (self.not_below is None):
            raise ValueError(
                "write one constraint an entry: {negative_flips: {against: …, at_most: …}} or "
                "{not_below: {task: …, model: …, by: …}}"
            )
        return self

    @property
    def kind(self) -> str:
        """The constraint's name."""
        return "not_below" if self.not_below else "negative_flips"

    @property
    def task(self) -> str | None:
        """The task it looks at; None: all."""
        constraint = self.not_below or self.negative_flips
        return constraint.task if constraint else None

    @property
    def model(self) -> tuple[str, str]:
        """The model it compares with, and the key that names it."""
        if self.not_below is not None:
            return self.not_below.model, "model"
        assert self.negative_flips is not None
        return self.negative_flips.against, "against"


class PlugConfig(BaseModel):
    """`kind` names a plug of a registry; the other keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The plug's own keyword arguments, as written in the file."""
        return dict(self.model_extra or {})


class NamedConfig(PlugConfig):
    """A plug by its bare name, or with options."""

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @model_serializer
    def _plain(self) -> Any:
        """As it is shortest to write."""
        return {"kind": self.kind, **self.options} if self.options else self.kind


class ObjectiveConfig(NamedConfig):
    """An objective (`evomerge list objectives`)."""


class EngineConfig(PlugConfig):
    """`kind` names what scores; the other keys are its options (`evomerge list engines`)."""

    kind: str = "hf"


class CallableConfig(Strict):
    """A metric of your own: `module:function`, called as `function(model, tokenizer, items)`.

    It gets the transformers model with the candidate's weights, the tokenizer, and some of the
    documents as dicts, and returns one number for each; an item's number may not depend on which
    others are asked with it. `module` is a file of the campaign file's folder (`metrics` or
    `metrics.py`), or an installed module; `documents` is a file of JSON objects, one a line.
    """

    callable: str
    documents: str
    task: str
    """The name of the task; the function's, unless it is given."""
    weight: float = Field(default=1.0, gt=0)
    higher_is_better: bool = True

    @property
    def module(self) -> str:
        """A module's dotted name, or a file's path."""
        return self.callable.rpartition(":")[0]

    @property
    def function(self) -> str:
        """The function's name in the module."""
        return self.callable.rpartition(":")[2]

    @model_validator(mode="before")
    @classmethod
    def _is_named_after_its_function(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("callable"), str) and "task" not in data:
            return {**data, "task": data["callable"].rpartition(":")[2]}
        return data

    @field_validator("callable")
    @classmethod
    def _names_a_function(cls, callable: str) -> str:
        module, _, function = callable.rpartition(":")
        if not module or not function.isidentifier():
            raise ValueError("write it as module:function, such as metrics:politeness")
        return callable


class TrackerConfig(NamedConfig):
    """Who else is told what is recorded (`evomerge list trackers`); yours as `module:Class`."""


class NotifyConfig(Strict):
    """A message to a `webhook` (POST, JSON) or a `command` (JSON on its standard input).

    `finish`: the campaign is done; `failure`: it ended in an error; `best`: the search has a new
    best trial.
    """

    when: list[Literal["finish", "failure", "best"]] = Field(
        default=["finish", "failure"], min_length=1
    )
    webhook: str | None = Field(default=None, pattern="^https?://")
    command: str | list[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _goes_one_way(self) -> NotifyConfig:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("give webhook or command, one of them in each entry")
        return self


Scalar = bool | int | float | str
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Bounds(Strict):
    """What a gene is searched between; by its logarithm when `log`."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _do_not_cross(self) -> Bounds:
        if not self.low < self.high:
            raise ValueError(
                f"bounds [{self.low:g}, {self.high:g}] cross; write low < high, or one value to "
                "fix the gene"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}; a gene with log: true needs low > 0")
        return self


class LinesConfig(Strict):
    """LiNeS: merged task vectors times alpha + beta·l/(L−1) in layer l of L, alpha outside them.

    Each is `[low, high]`, a gene, or one value.
    """

    alpha: Pair | float = Field(default_factory=lambda: [0.0, 1.5])
    beta: Pair | float = Field(default_factory=lambda: [0.0, 1.5])

    @field_validator("alpha", "beta")
    @classmethod
    def _bounds_do_not_cross(cls, value: list[float] | float) -> list[float] | float:
        if isinstance(value, list) and not value[0] < value[1]:
            raise ValueError(f"bounds {value} cross; write [low, high] with low < high")
        return value


class DareConfig(Strict):
    """DARE: entries of the experts' task vectors dropped at random before the method merges them.

    `density` is the probability that an entry survives: `[low, high]`, a gene (with `per: group`
    one for each group of tensors that is tuned together), or one value; at 1 nothing is dropped.
    `rescale` says what survivors are multiplied by: 1/density, what gives a task vector its `l1`
    norm back, or nothing (`none`).
    """

    density: Pair | float = Field(default_factory=lambda: [0.1, 1.0])
    rescale: Literal["density", "l1", "none"] = "density"
    per: Literal["model", "group"] = "model"

    @field_validator("density")
    @classmethod
    def _is_a_probability(cls, value: list[float] | float) -> list[float] | float:
        low, high = value if isinstance(value, list) else (value, value)
        if not 0 < low <= high <= 1:
            raise ValueError(f"density is {value}; write numbers above 0, up to 1")
        if isinstance(value, list) and low == high:
            raise ValueError(f"bounds {value} cross; write low < high, or one value to fix it")
        return value


class WeightsConfig(Strict):
    """Merging in weight space: a method, how finely it is tuned, and the genes' bounds.

    `genes` maps a parameter of the method to `[low, high]` or `{low, high, log: true}`, or to one
    value to fix it. Parameters that are not named keep the method's defaults. A key with dots names
    genes, `*` standing for anything (`weight.layer_0*.math`), and gives those their own bounds or
    value. `granularity: block` tunes `block` layers together, `tensor` every tensor of a layer
    apart. `choose_experts` adds a gene per expert that leaves it out of the whole merge.

    `method` may be a list: the method is then searched too, one for the whole model, or, with
    `methods_per: group`, one for each group of tensors that is tuned together. In `genes`, a plain
    name is that parameter of every method of the list that has it, by one gene for all of them;
    with a method's name before it (`ties.density`) it is that method's alone.

    `lines` scales what the method adds to the base by depth; the method's `lambda` is then fixed.
    `dare` drops entries of the task vectors at random before the method merges them.
    """

    method: str | Annotated[list[str], Field(min_length=1)]
    methods_per: Literal["model", "group"] = Field(
        default="model", exclude_if=lambda per: per == "model"
    )
    granularity: Literal["model", "block", "layer", "module", "tensor"] = "layer"
    block: int = Field(default=4, ge=1)
    choose_experts: bool = False
    lines: LinesConfig | None = Field(default=None, exclude_if=lambda lines: lines is None)
    dare: DareConfig | None = Field(default=None, exclude_if=lambda dare: dare is None)
    genes: dict[
        str, Annotated[list[float], Field(min_length=2, max_length=2)] | Bounds | Scalar
    ] = Field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """The methods to choose from; one, if it is not searched."""
        return [self.method] if isinstance(self.method, str) else self.method

    @field_validator("method")
    @classmethod
    def _methods_are_named_once(cls, method: str | list[str]) -> str | list[str]:
        for name in method if isinstance(method, list) else ():
            if method.count(name) > 1:
                raise ValueError(f"{name} is listed twice; give each method once")
        return method

    @model_validator(mode="after")
    def _there_is_a_choice(self) -> WeightsConfig:
        if self.methods_per == "group" and len(self.methods) == 1:
            raise ValueError("methods_per: group needs a list of methods to choose from")
        return self

    @field_validator("genes", mode="before")
    @classmethod
    def _are_bounds_or_values(cls, genes: Any) -> Any:
        for name, value in genes.items() if isinstance(genes, dict) else ():
            pair = isinstance(value, list) and len(value) == 2
            if not (pair or isinstance(value, Scalar | dict | Bounds)):
                raise ValueError(f"{name}: write [low, high] to search it, or one value to fix it")
        return genes

    @field_validator("genes")
    @classmethod
    def _bounds_do_not_cross(cls, genes: dict[str, Any]) -> dict[str, Any]:
        for name, value in genes.items():
            if isinstance(value, list) and not value[0] < value[1]:
                raise ValueError(
                    f"{name}: bounds {value} cross; write [low, high] with low < high, "
                    "or one value to fix the gene"
                )
        return genes


class PathConfig(BaseModel):
    """`kind` names the space of paths; the other keys are its options (`evomerge list paths`)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own keyword arguments, as written in the file."""
        return dict(self.model_extra or {})


class SpaceConfig(Strict):
    """The search space: weights, a path, or both.

    `path: none` keeps the models' own layer sequence. Where both are given, the weight genes define
    a merge that the path's options may name as "merged", and that is their model A unless they say
    otherwise: every slot with layer l of "merged" has the merges that these genes give layer l.
    """

    weights: WeightsConfig | None = None
    path: PathConfig = PathConfig()
    grid: int | None = Field(default=None, ge=2)
    """So many values of every searched parameter, the same everywhere, are scored beside parents
    and baselines, before the search and outside its budget."""

    @field_validator("path", mode="before")
    @classmethod
    def _a_name_is_a_kind(cls, path: Any) -> Any:
        return {"kind": path} if isinstance(path, str) else path

    @field_serializer("path")
    def _none_is_a_name(self, path: PathConfig) -> Any:
        return path.kind if path.kind == "none" else path.model_dump(mode="json")

    @model_validator(mode="after")
    def _search_something(self) -> SpaceConfig:
        if self.weights is None and self.path.kind == "none":
            raise ValueError("nothing to search; give weights, path, or both")
        if self.grid is not None and self.weights is None:
            raise ValueError("grid: is of coefficients, so it needs weights; leave it out")
        if self.path.kind == "none" and self.path.options:
            raise ValueError(f"path: kind none has no options ({', '.join(self.path.options)})")
        return self


class WorkersConfig(Strict):
    """`local` with one worker runs in the driver's process; everything else on Ray.

    Ray is started on this machine, or, with `address`, found: `auto` is the cluster that this
    machine is part of, anything else its head's `HOST` or `HOST:PORT`. Workers come as nodes do, up
    to `count`; `auto` is as many as the cluster has room for.
    """

    kind: Literal["local", "ray"] = "local"
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    cpus_per_worker: int | None = Field(default=None, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    address: str | None = None
    model_parallel: bool | None = None
    """Whether a model is spread over the GPUs of its worker; by default if it has several."""
    timeout: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    """Seconds after which an evaluation has hung; `auto`: derived from what others took."""
    copy_to: str | None = None
    """A folder on each node to which models and tasks are copied once; without it every node must
    see them where they are."""

    @property
    def on_ray(self) -> bool:
        """Whether workers are Ray actors rather than the driver itself."""
        return self.kind == "ray" or self.count != 1

    @property
    def spreads(self) -> bool:
        """Whether a model is on several GPUs."""
        return self.gpus_per_worker > 1

    @model_validator(mode="after")
    def _ray_has_these(self) -> WorkersConfig:
        defaults = type(self).model_fields
        for key in ("gpus_per_worker", "address", "model_parallel", "timeout", "copy_to"):
            if not self.on_ray and getattr(self, key) != defaults[key].default:
                raise ValueError(f"{key} needs kind: ray")
        if self.count == "auto" and self.kind == "local":
            raise ValueError("count: auto needs kind: ray")
        if self.count == "auto" and not (self.cpus_per_worker or self.gpus_per_worker):
            raise ValueError("count: auto needs cpus_per_worker or gpus_per_worker")
        return self

    @model_validator(mode="after")
    def _gpus_are_used(self) -> WorkersConfig:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker: {gpus:g}: above 1 write a whole number")
        if gpus > 1 and self.model_parallel is False:
            raise ValueError(f"gpus_per_worker: {gpus:g}: without model_parallel one is used")
        if self.model_parallel and gpus < 2:
            raise ValueError("model_parallel: true needs gpus_per_worker: 2 or more")
        return self

    @field_validator("copy_to")
    @classmethod
    def _is_a_place_on_any_node(cls, copy_to: str | None) -> str | None:
        if copy_to is not None and not PurePath(copy_to).is_absolute():
            raise ValueError("write an absolute path; it is taken on every node")
        return copy_to
