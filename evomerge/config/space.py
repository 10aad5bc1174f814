"""`space`: the methods, genes and paths that are searched."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from evomerge.common.wrong_values import looks_like_tuple
from evomerge.config.base import Pair, Scalar, Strict


class Bounds(Strict):
    """Bounds of a gene, which is searched by its logarithm when `log`."""

    low: float
    """The gene's least value.

    Example: `low: 0.001, high: 1, log: true`
    """
    high: float
    """The gene's greatest value.

    Example: `low: 0.001, high: 1, log: true`
    """
    log: bool = False
    """Search the gene by its logarithm. Use it where the bounds are powers of ten apart.

    Example: `low: 0.001, high: 1, log: true`
    """

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
    """α, the factor of the first layer: `[low, high]`, a gene, or one value.

    Example: `alpha: 0.5, beta: [0, 1.5]`
    """
    beta: Pair | float = Field(default_factory=lambda: [0.0, 1.5])
    """β, what the last layer's factor has more: `[low, high]`, a gene, or one value.

    Example: `alpha: 0.5, beta: [0, 1.5]`
    """

    @field_validator("alpha", "beta")
    @classmethod
    def _bounds_do_not_cross(cls, value: list[float] | float) -> list[float] | float:
        if isinstance(value, list) and not value[0] < value[1]:
            raise ValueError(f"bounds {value} cross; write [low, high] with low < high")
        return value


class _DensityConfig(Strict):
    """The share of the entries of task vectors that is kept."""

    density: Pair | float = Field(default_factory=lambda: [0.1, 1.0])
    """The share of entries that is kept: `[low, high]`, a gene, or one value; at 1 everything
    is kept.

    Example: `density: [0.2, 1]`
    """
    per: Literal["model", "group"] = "model"
    """One gene for the whole model, or one for each group of tensors that is tuned together.

    Example: `per: group`
    """

    @field_validator("density")
    @classmethod
    def _is_a_probability(cls, value: list[float] | float) -> list[float] | float:
        low, high = value if isinstance(value, list) else (value, value)
        if not 0 < low <= high <= 1:
            raise ValueError(f"density is {value}; write numbers above 0, up to 1")
        if isinstance(value, list) and low == high:
            raise ValueError(f"bounds {value} cross; write low < high, or one value to fix it")
        return value


class DareConfig(_DensityConfig):
    """DARE: entries of the experts' task vectors dropped at random before the method merges them.

    `density` is the probability that an entry survives.
    """

    rescale: Literal["density", "l1", "none"] = "density"
    """What survivors are multiplied by: 1/density, what gives a task vector its `l1` norm back,
    or nothing (`none`).

    Example: `rescale: l1`
    """


class AimConfig(Strict):
    """AIM: weights whose inputs are large in the base are changed less, whatever the method.

    Changes of column j are multiplied by 1 − ā_j(1 − ω), ā_j the base's mean |x_j| over the largest
    one. `models.statistics` has to name a calibration file of `base`.
    """

    omega: Pair | float = Field(default_factory=lambda: [0.0, 1.0])
    """ω, the share of a change that is left where the activation is largest: `[low, high]`, a
    gene, or one value; 1 changes nothing (the paper: 0.4).

    Example: `omega: [0, 1]`
    """
    quantile: float = Field(default=1.0, gt=0, le=1)
    """The quantile of inputs whose activation counts as largest. Give 0.99 where a few inputs
    have massive activations, beside which all others are small.

    Example: `omega: 0.4, quantile: 0.99`
    """

    @field_validator("omega")
    @classmethod
    def _is_a_share(cls, value: list[float] | float) -> list[float] | float:
        low, high = value if isinstance(value, list) else (value, value)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"omega is {value}; write numbers from 0 to 1")
        if isinstance(value, list) and low == high:
            raise ValueError(f"bounds {value} cross; write low < high, or one value to fix it")
        return value


_OF_KIND = {"magnitude": (), "fisher": (), "dare": ("rescale",), "della": ("epsilon", "rescale")}
_OF_KIND |= {"breadcrumbs": ("gamma",)}


class SparsifyConfig(_DensityConfig):
    """Entries of the experts' task vectors are dropped before the method merges them.

    `magnitude` keeps the largest share `density` of each, `breadcrumbs` that share below the
    largest `gamma`, `dare` keeps entries at random, and `della` at random with larger ones
    likelier (density ± `epsilon`, by rank within a row). `fisher` keeps the share of largest
    F ⊙ τ², F the expert's diagonal Fisher (`models.statistics`). `rescale` is as in the methods
    `dare_linear` and `della`, or `none`.
    """

    kind: Literal["magnitude", "dare", "della", "breadcrumbs", "fisher"]
    """The rule by which entries are dropped: the smallest (`magnitude`), both ends
    (`breadcrumbs`), at random (`dare`), at random with small ones likelier (`della`), or those
    that matter least on the expert's data (`fisher`).

    Example: `kind: magnitude, density: [0.2, 1]`
    """
    gamma: float | None = Field(default=None, ge=0, le=1)
    """The share of largest entries that `breadcrumbs` drops.

    Example: `kind: breadcrumbs, gamma: 0.01`
    """
    epsilon: float | None = Field(default=None, ge=0, le=0.5)
    """How far the density of `della` goes up and down by rank.

    Example: `kind: della, epsilon: 0.1`
    """
    rescale: Literal["density", "probability", "l1", "none"] | None = None
    """What survivors are multiplied by, in `dare` and `della`: by the reciprocal of what chose
    them, by what restores the `l1` norm, or by nothing (`none`).

    Example: `kind: dare, rescale: l1`
    """

    @model_validator(mode="after")
    def _options_are_the_kinds_own(self) -> Self:
        for name in ("gamma", "epsilon", "rescale"):
            if getattr(self, name) is not None and name not in _OF_KIND[self.kind]:
                own = ", ".join(("density", *_OF_KIND[self.kind]))
                raise ValueError(f"{self.kind} has no {name}; it has {own}")
        other = {"dare": "probability", "della": "density"}.get(self.kind)
        if self.rescale is not None and self.rescale == other:
            raise ValueError(f"{self.kind} has no rescale: {other}")
        return self


class ChunksConfig(Strict):
    """Tensors are cut in pieces with genes of their own, the more, the more they matter.

    A tensor's importance is how far the experts move it: Σ |αᵢ| ‖τᵢ‖₁ over experts, αᵢ the weights
    at the start. It is cut in as many equal pieces as its share of the budget has whole
    coefficients; a tensor whose share is below 1 keeps the start's. Source: Expert Merging++, Zhang
    et al. 2025, arXiv:2509.25712.
    """

    budget: float = Field(default=1.0, gt=0, le=1000)
    """The number of pieces in all, B, in units of the number of tensors; the paper: 0.9 to 1.2.

    Example: `budget: 1.2, power: 1`
    """
    power: float = Field(default=1.0, ge=0, le=100)
    """κ, to which importance is raised: below 1 the budget is spread more evenly, and at 0 each
    tensor that an expert changed has the same share.

    Example: `budget: 1, power: 0.5`
    """


class WeightsConfig(Strict):
    """Merging in weight space: a method, how finely it is tuned, and the genes' bounds.

    `genes` maps a parameter of the method to `[low, high]` or `{low, high, log: true}`, or to one
    value to fix it. Parameters that are not named keep the method's defaults. A key with dots names
    genes, `*` standing for anything (`weight.layer_0*.math`), and gives those their own bounds or
    value. `granularity: block` tunes `block` layers together, `tensor` every tensor of a layer
    apart; `chunks` then cuts those that matter most in pieces. `choose_experts` adds a gene per
    expert that leaves it out of the whole merge.

    `method` may be a list: the method is then searched too, one for the whole model, or, with
    `methods_per: group`, one for each group of tensors that is tuned together. In `genes`, a plain
    name is that parameter of every method of the list that has it, by one gene for all of them;
    with a method's name before it (`ties.density`) it is that method's alone.

    `lines` scales what the method adds to the base by depth; the method's `lambda` is then fixed.
    `sparsify` drops entries of the task vectors before the method merges them; `dare` is the same
    as `sparsify: {kind: dare}`, with other names of its genes. `aim` changes weights less where
    the base's activations are large.
    """

    method: str | Annotated[list[str], Field(min_length=1)]
    """The merge method (`evomerge list methods`), or a list from which the search chooses.

    Example: `method: ties`
    """
    methods_per: Literal["model", "group"] = Field(
        default="model", exclude_if=lambda per: per == "model"
    )
    """One choice of the method for the whole model, or one for each group of tensors that is
    tuned together.

    Example: `method: [linear, ties], methods_per: group`
    """
    granularity: Literal["model", "block", "layer", "module", "tensor"] = "layer"
    """How finely genes are given: one set for the model, for each block of layers, each layer,
    each module (attention, MLP, norms), or each tensor. Coarser means fewer genes and fewer
    trials: begin with `model` or `block`.

    Example: `method: ties, granularity: block, block: 8`
    """
    block: int = Field(default=4, ge=1)
    """The number of layers that `granularity: block` tunes together.

    Example: `method: ties, granularity: block, block: 8`
    """
    chunks: ChunksConfig | None = Field(default=None, exclude_if=lambda chunks: chunks is None)
    """Give tensors that matter more than others several genes, and those that matter least none
    (`granularity: tensor`).

    Example: `method: task_arithmetic, granularity: tensor, chunks: {budget: 1.0, power: 1.0}`
    """
    choose_experts: bool = False
    """Add a gene per expert that leaves it out of the whole merge. Use it where some experts
    may only do harm.

    Example: `choose_experts: true`
    """
    lines: LinesConfig | None = Field(default=None, exclude_if=lambda lines: lines is None)
    """Scale what the method adds to the base by depth (LiNeS).

    Example: `method: task_arithmetic, lines: {alpha: 0.5, beta: [0, 1.5]}`
    """
    dare: DareConfig | None = Field(default=None, exclude_if=lambda dare: dare is None)
    """Drop entries of task vectors at random before the method merges them; `sparsify` says the
    same.

    Example: `method: task_arithmetic, dare: {density: [0.2, 1]}`
    """
    sparsify: SparsifyConfig | None = Field(default=None, exclude_if=lambda given: given is None)
    """Drop entries of task vectors before the method merges them.

    Example: `method: task_arithmetic, sparsify: {kind: magnitude, density: [0.2, 1]}`
    """
    aim: AimConfig | None = Field(default=None, exclude_if=lambda aim: aim is None)
    """Change weights less where their inputs are large in the base (AIM), whatever the method.

    Example: `method: ties, aim: {omega: [0, 1]}`
    """
    genes: dict[
        str, Annotated[list[float], Field(min_length=2, max_length=2)] | Bounds | Scalar
    ] = Field(default_factory=dict)
    """Parameter of the method → `[low, high]` or `{low, high, log: true}` to search it, or one
    value to fix it. What is not named keeps the method's default.

    Example: `method: ties, genes: {weight: [0, 1.5], density: 0.5}`
    """

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

    @model_validator(mode="after")
    def _tensors_are_cut(self) -> WeightsConfig:
        if self.chunks is not None and self.granularity != "tensor":
            raise ValueError(
                f"chunks: cuts single tensors, and granularity is {self.granularity}; write "
                "granularity: tensor, or leave chunks out"
            )
        if self.chunks is not None and self.methods_per == "group":
            raise ValueError(
                "chunks: leaves some tensors without genes, and methods_per: group gives each one; "
                "leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _is_made_sparse_once(self) -> WeightsConfig:
        if self.dare is not None and self.sparsify is not None:
            raise ValueError("dare and sparsify are one thing; give one")
        return self

    @field_validator("genes", mode="before")
    @classmethod
    def _are_bounds_or_values(cls, genes: Any) -> Any:
        for name, value in genes.items() if isinstance(genes, dict) else ():
            if looks_like_tuple(value):
                raise ValueError(f"{name}: write a range with square brackets: [low, high]")
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


class MixtureConfig(Strict):
    """Merging the experts inside a mixture model into fewer, which makes it smaller (M-SMoE).

    Without `weights` the experts are the base's, and `models.experts` may be `{}`; else they are
    those of the merge.
    """

    experts: Annotated[list[int], Field(min_length=2, max_length=2)] | int
    """The number of experts that each layer has in the result: `[low, high]`, a gene, or one value.
    As many as the model has leaves them as they are.

    Example: `experts: [2, 8]`
    """
    groups: Literal["router", "weights"] = "weights"
    """The way in which experts are grouped: by what they give for random inputs, each counting the
    same (`weights`), or by the router on the base's calibration texts, each counting by its use
    (`router`, from `evomerge calibrate`).

    Example: `experts: [2, 8], groups: router`
    """

    per_layer: Literal["same", "free"] = "same"
    """Let the groups follow one rule in every layer (`same`), or search in each layer which experts
    lead a group (`free`), by a gene for each expert. The number of groups is the same in all
    layers: a checkpoint has one number for all of them.

    Example: `experts: [2, 8], per_layer: free`
    """

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most experts."""
        low, high = self.experts if isinstance(self.experts, list) else [self.experts] * 2
        return low, high

    @field_validator("experts")
    @classmethod
    def _are_several(cls, value: list[int] | int) -> list[int] | int:
        low, high = value if isinstance(value, list) else (value, value)
        if low < 2:
            raise ValueError(f"{low} experts are no mixture; write 2 or more")
        if isinstance(value, list) and not low < high:
            raise ValueError(f"bounds {value} cross; write low < high, or one value to fix it")
        return value


class PathConfig(BaseModel):
    """`kind` names the space of paths; the other keys are its options (`evomerge list paths`)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = "none"
    """The kind of path (`evomerge list paths`); `none` keeps the models' own layer sequence.

    Example: `kind: layer_swap, outer: lang, inner: math`
    """

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own keyword arguments, as written in the file."""
        return dict(self.model_extra or {})


class SpaceConfig(Strict):
    """The search space: weights, a path, or both; or fewer experts inside a mixture.

    `path: none` keeps the models' own layer sequence. Where both are given, the weight genes define
    a merge that the path's options may name as "merged", and that is their model A unless they say
    otherwise: every slot with layer l of "merged" has the merges that these genes give layer l.
    """

    weights: WeightsConfig | None = None
    """Merging in weight space: a method, how finely it is tuned, and the genes' bounds.

    Example: `weights: {method: ties, granularity: block, genes: {weight: [0, 1.5]}}`
    """
    path: PathConfig = PathConfig()
    """Which layer of which model stands where. Use it to move or repeat layers.

    Example: `path: {kind: layer_swap, outer: lang, inner: math}`
    """
    mixture: MixtureConfig | None = Field(default=None, exclude_if=lambda mixture: mixture is None)
    """Merge the experts inside a mixture of experts into fewer, for a smaller model. It may stand
    alone or beside weights.

    Example: `mixture: {experts: [2, 8], groups: weights}`
    """
    grid: int | None = Field(default=None, ge=2)
    """Values of every searched parameter, the same everywhere, that are scored beside parents
    and baselines, before the search and outside its budget. Use it to show that a search beats
    a grid.

    Example: `weights: {method: linear}, grid: 5`
    """

    @property
    def changes_shapes(self) -> bool:
        """Whether recipes may have other tensors than the base: more layers, fewer experts."""
        return self.path.kind != "none" or self.mixture is not None

    @field_validator("path", mode="before")
    @classmethod
    def _a_name_is_a_kind(cls, path: Any) -> Any:
        return {"kind": path} if isinstance(path, str) else path

    @field_serializer("path")
    def _none_is_a_name(self, path: PathConfig) -> Any:
        return path.kind if path.kind == "none" else path.model_dump(mode="json")

    @model_validator(mode="after")
    def _search_something(self) -> SpaceConfig:
        if self.weights is None and self.path.kind == "none" and self.mixture is None:
            raise ValueError("nothing to search; give weights, path, or both")
        if self.mixture is not None and self.path.kind != "none":
            raise ValueError(
                "mixture: merges experts of models whose layers stay as they are; leave path out"
            )
        one = self.mixture is not None and isinstance(self.mixture.experts, int)
        if self.weights is None and self.mixture and one and self.mixture.per_layer == "same":
            raise ValueError(
                f"mixture.experts: {self.mixture.experts} is one value, so there is nothing to "
                "search; write [low, high], per_layer: free, or give weights, too"
            )
        if self.grid is not None and self.weights is None:
            raise ValueError("grid: is of coefficients, so it needs weights; leave it out")
        if self.path.kind == "none" and self.path.options:
            raise ValueError(f"path: kind none has no options ({', '.join(self.path.options)})")
        return self
