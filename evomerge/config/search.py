"""`optimizer`, `budget`, `initial` and `stages`: how the space is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, NonNegativeFloat, Tag, model_validator

from evomerge.config.base import PlugConfig, Scalar, Strict
from evomerge.config.space import SpaceConfig


class OptimizerConfig(PlugConfig):
    """`kind` names the optimizer (`evomerge list optimizers`), or your own as `module:Class`; the
    other keys are its options.
    """

    kind: str = "cma"
    """The optimizer's name, or your own as `module:Class`.

    Example: `kind: m2n2`
    """
    plain: bool = Field(default=False, exclude_if=lambda plain: not plain)
    """Run the bare algorithm: it is not told how parents and baselines did, and nothing is on by
    default that saves items: no gradient start, no descents, no rungs, no screening. Turn it on to
    compare algorithms.

    Example: `plain: true`
    """
    screen: int = Field(default=1, ge=1, le=1000, exclude_if=lambda among: among == 1)
    """The number of proposals from which a surrogate model of the results picks the one that is
    evaluated; 1 turns it off. Unless given, it is 4 with `cma` and 50 trials or more.

    Example: `screen: 4`
    """


class BudgetConfig(Strict):
    """Whichever limit is reached first ends the search."""

    trials: int = Field(default=200, ge=1)
    """The study's total of search trials. Twenty for each gene is a fair start.

    Example: `trials: 150`
    """
    items: int | None = Field(default=None, ge=1)
    """The total of items that search trials are scored on; given without `trials`, it alone ends
    the search. Use it with rungs, to compare at equal cost.

    Example: `items: 20000`
    """
    hours: float | None = Field(default=None, gt=0)
    """This run's wall time; the same command goes on the next night.

    Example: `hours: 8`
    """

    @model_validator(mode="before")
    @classmethod
    def _items_alone_are_enough(cls, data: Any) -> Any:
        """Allow a trial for every item, since each asks for one at least."""
        if isinstance(data, dict) and data.get("items") and "trials" not in data:
            return {**data, "trials": data["items"]}
        return data


class BestTrials(Strict):
    """`run` tries the best trials of another run first; genes are matched by their names."""

    run: str
    """The folder of another run, whose best trials are tried first; genes are matched by name.

    Example: `run: runs/last-night, trials: 3`
    """
    trials: int = Field(default=1, ge=1)
    """The number of its best trials by search.

    Example: `run: runs/last-night, trials: 3`
    """


class StudyTrials(Strict):
    """`study` tries the best trials of any Optuna study first; params are matched by name.

    Params that are no genes here are left out. A number out of bounds becomes the nearest bound.
    """

    study: str
    """The storage's URL of any Optuna study, whose best trials are tried first; params are matched
    by name.

    Example: `study: 'sqlite:///other.db', name: night`
    """
    name: str | None = None
    """The study's name; it may be left out where the storage has one study.

    Example: `study: 'sqlite:///other.db', name: night`
    """
    trials: int = Field(default=1, ge=1)
    """The number of its best trials, by its own direction.

    Example: `study: 'sqlite:///other.db', trials: 3`
    """


class DescentOptions(Strict):
    """The options of every gradient descent on the genes, on documents of the search split.

    `steps` of projected Adam at `rate` (a share of each gene's range), on `batch` fresh documents
    each. Of the split `held_back` is kept aside: every `check` steps its loss is looked at, the
    best point so far is the end, and the descent stops when `patience` looks found none better.
    """

    steps: int = Field(default=30, ge=1)
    """The number of steps of projected Adam.

    Example: `steps: 30`
    """
    batch: int = Field(default=30, ge=1)
    """Fresh documents for each step; a document costs three items.

    Example: `batch: 60`
    """
    rate: float = Field(default=0.05, gt=0, le=1)
    """Adam's step, as a share of each gene's range.

    Example: `rate: 0.02`
    """
    held_back: float = Field(default=0.2, ge=0, lt=1)
    """The share of the search split that is kept aside, to see when to stop. 0, with `check: 0`:
    nothing is.

    Example: `held_back: 0.3`
    """
    check: int = Field(default=5, ge=0)
    """The loss on what was held back is looked at every so many steps. 0: never; all steps are
    made, and the end is where the last one led.

    Example: `check: 10`
    """
    patience: int = Field(default=3, ge=1)
    """The descent stops when so many looks brought nothing better.

    Example: `patience: 5`
    """
    average: float = Field(default=0.0, ge=0, le=1, exclude_if=lambda share: not share)
    """With `check: 0`, the end is the mean over this share of the steps, the last ones; 0: where
    the last one led. Give it with small batches, whose steps lead around the best point.

    Example: `average: 0.3, check: 0, held_back: 0`
    """

    @model_validator(mode="after")
    def _looks_have_documents(self) -> Self:
        if self.check and not self.held_back:
            raise ValueError("held_back: 0 leaves nothing to look at; write check: 0 as well")
        if self.check and self.average:
            raise ValueError(
                "average: looks choose the end where there are any; write check: 0 and "
                "held_back: 0 as well, or leave average out"
            )
        return self


class DescentConfig(DescentOptions):
    """A gradient descent on the genes before the search, on documents of the search split.

    `steps` of projected Adam at `rate` (a share of each gene's range), on `batch` fresh documents
    each. Of the split `held_back` is kept aside: every `check` steps its loss is looked at, the
    best point so far is the end, and the descent stops when `patience` looks found none better.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    origin: str = Field(default="uniform", alias="from")
    """The point where it begins: `uniform`, a model's name, `best_parent`, the best on search
    that the space holds, or `best_known`, default merges among them.

    Example: `from: best_parent`
    """
    sets: int = Field(default=0, ge=0, exclude_if=lambda sets: sets == 0)
    """With `choose_experts`, so many sets of experts are tried after the end, with the end's
    weights: those first whose weight the gradient where it began wants raised the most. Give it
    where there are many experts.

    Example: `sets: 6`
    """


class PolishConfig(DescentOptions):
    """A short gradient descent from the best finalists, after the search.

    Where each ends is scored on search and select, and stands in the choice of the winner beside
    the finalists: it wins only if it is better than all of them on select. What it costs is beside
    the budget, which is the search's.
    """

    steps: int = Field(default=20, ge=1)
    """The number of steps of projected Adam.

    Example: `steps: 20`
    """
    rate: float = Field(default=0.02, gt=0, le=1)
    """Adam's step, as a share of each gene's range; shorter than that of a beginning.

    Example: `rate: 0.01`
    """
    top: int = Field(default=1, ge=1)
    """The number of finalists that are polished, the best on select first. More are a larger
    choice on select, which flatters what it chooses.

    Example: `top: 2`
    """


class GradientStart(Strict):
    """The end of a gradient descent as a point to try first."""

    gradient: DescentConfig
    """Descend on the genes before the search. Use it where there are many genes and a model
    fits twice.

    Example: `gradient: {steps: 30, from: uniform}`
    """


class PointStart(Strict):
    """Values of genes as a point to try first; genes that are not named are as at the start."""

    genes: dict[str, Scalar]
    """Gene → value. A name without its end means all genes that begin so: `weight` all experts'
    weights in all layers. Use it to begin at what a paper or an earlier merge found.

    Example: `genes: {weight: 0.4}`
    """


class PriorStart(Strict):
    """Weights or densities by layer, proposed from what the models' data says, as a point to try
    first.
    """

    prior: Literal["sens", "fim", "lewis", "wsm"]
    """`sens` (Sens-Merging): weights by how sensitive each expert is to a layer on its own texts.
    `fim` (FIM-Merging): smaller weights where the base's Fisher information and the change are
    large. `lewis` (LEWIS): densities by how much a layer's activations changed. These need files of
    `evomerge calibrate`, and genes by layer (`space.weights.granularity`). `wsm` (WSM) needs no
    data: experts are checkpoints of one run in their order, weighted as if the rate had decayed.

    Example: `prior: sens`
    """
    scale: float | None = Field(default=None, gt=0)
    """`sens`, `fim`: λ, by which weights are multiplied; 1/N for N experts, unless given, so that
    weights of `sens` sum to 1 in each layer.

    Example: `prior: sens, scale: 0.35`
    """
    temperature: float = Field(default=2.0, gt=0)
    """`sens`: T of the softmax over experts; the larger, the more alike they count. Authors have 2
    for 7 B, 3 for 1.5 B, 6 for 14 B.

    Example: `prior: sens, temperature: 3`
    """
    tau: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """`sens`: expert → τ, how much it helps on others' tasks; 1 for those that are not named.

    Example: `prior: sens, tau: {math: 2}`
    """
    sharpness: float = Field(default=1.0, ge=0)
    """`fim`: how far weights of different layers lie apart; at 0 they are all alike.

    Example: `prior: fim, sharpness: 2`
    """
    low: float = Field(default=0.5, ge=0, le=1)
    """`lewis`: density of the matrix whose activations changed the least.

    Example: `prior: lewis, low: 0.3`
    """
    high: float = Field(default=0.8, ge=0, le=1)
    """`lewis`: density of the matrix whose activations changed the most.

    Example: `prior: lewis, high: 0.9`
    """
    decay: Literal["linear", "cosine", "sqrt"] = "linear"
    """`wsm`: how the rate would have decayed over the checkpoints; `sqrt` is 1 − √. `linear` is
    their plain mean.

    Example: `prior: wsm, decay: cosine`
    """

    @model_validator(mode="after")
    def _options_are_the_priors(self) -> Self:
        own = {
            "sens": {"scale", "temperature", "tau"},
            "fim": {"scale", "sharpness"},
            "lewis": {"low", "high"},
            "wsm": {"decay"},
        }
        allowed = own[self.prior]
        for key, field in type(self).model_fields.items():
            left = field.get_default(call_default_factory=True)  # as a recorded campaign has it
            if key not in {"prior", *allowed} and getattr(self, key) != left:
                raise ValueError(f"{self.prior} has no {key}; it has {', '.join(sorted(allowed))}")
        if self.low > self.high:
            raise ValueError("low is above high; exchange them")
        return self


_SECTIONS = {
    "study": StudyTrials,
    "gradient": GradientStart,
    "prior": PriorStart,
    "genes": PointStart,
    "run": BestTrials,
}


def _kind_of_start(start: Any) -> str:
    if isinstance(start, Mapping):
        return next((kind for kind in _SECTIONS if kind in start), "run")
    return next((kind for kind, section in _SECTIONS.items() if isinstance(start, section)), "name")


Start = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[BestTrials, Tag("run")]
    | Annotated[StudyTrials, Tag("study")]
    | Annotated[GradientStart, Tag("gradient")]
    | Annotated[PriorStart, Tag("prior")]
    | Annotated[PointStart, Tag("genes")],
    Discriminator(_kind_of_start),
]


class StageConfig(Strict):
    """A stage is one of several searches; the winners of those before it are among its experts.

    Keys that a stage leaves out are the campaign's; tasks, splits, models and seed always are.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """The name of the stage, and of its winner as a model of the later stages.

    Example: `name: weights, space: {weights: {method: linear}}`
    """
    space: SpaceConfig
    """The stage's own search space, written as `space` is.

    Example: `name: weights, space: {weights: {method: linear}}`
    """
    optimizer: OptimizerConfig | None = None
    """The stage's optimizer; the campaign's, unless given.

    Example: `name: weights, space: {weights: {method: linear}}, optimizer: {kind: m2n2}`
    """
    initial: list[Start] = Field(default_factory=list)
    """The stage's points to try first, written as `initial` is.

    Example: `name: weights, space: {weights: {method: linear}}, initial: [uniform]`
    """
    trials: int | None = Field(default=None, ge=1)
    """The stage's trials; `budget.trials`, unless given.

    Example: `name: weights, space: {weights: {method: linear}}, trials: 50`
    """
