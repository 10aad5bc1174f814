"""`optimizer`, `budget`, `initial` and `stages`: how the space is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from evomerge.config.base import PlugConfig, Strict
from evomerge.config.space import SpaceConfig


class OptimizerConfig(PlugConfig):
    """`kind` names the optimizer (`evomerge list optimizers`), or your own as `module:Class`; the
    other keys are its options.

    `screen`: of so many proposals the one is evaluated that a surrogate of the results prefers; 1
    turns it off.
    """

    kind: str = "cma"
    screen: int = Field(default=1, ge=1, le=1000, exclude_if=lambda among: among == 1)


class BudgetConfig(Strict):
    """`trials`: the study's total; `items`: that of the search items they are asked for, whatever
    the trials if only it is given. `hours`: this run's wall time.
    """

    trials: int = Field(default=200, ge=1)
    items: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _items_alone_are_enough(cls, data: Any) -> Any:
        """Allow a trial for every item, since each asks for one at least."""
        if isinstance(data, dict) and data.get("items") and "trials" not in data:
            return {**data, "trials": data["items"]}
        return data


class BestTrials(Strict):
    """The best `trials` by search of another run's folder, their genes taken over by name."""

    run: str
    trials: int = Field(default=1, ge=1)


class StudyTrials(Strict):
    """The best `trials` of any Optuna study, its params taken over by name.

    `study`: its storage's URL; `name` may be left out where the storage has one study. What is best
    the study's own direction says. Params that are no genes here are passed over, numbers out of
    bounds go to the nearest.
    """

    study: str
    name: str | None = None
    trials: int = Field(default=1, ge=1)


class DescentConfig(Strict):
    """A gradient descent on the genes before the search, on documents of the search split.

    `steps` of projected Adam at `rate` (a share of each gene's range), on `batch` fresh documents
    each, which cost three items a document. `from` is where it begins: `uniform`, a model's name,
    or `best_parent`, the best on search that the space holds. Of the split `held_back` is kept
    aside: every `check` steps its loss is looked at, the best point so far is the end, and the
    descent stops when `patience` looks brought nothing better.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    steps: int = Field(default=30, ge=1)
    origin: str = Field(default="uniform", alias="from")
    batch: int = Field(default=30, ge=1)
    rate: float = Field(default=0.05, gt=0, le=1)
    held_back: float = Field(default=0.2, gt=0, lt=1)
    check: int = Field(default=5, ge=1)
    patience: int = Field(default=3, ge=1)


class GradientStart(Strict):
    """The end of a gradient descent as a point to try first."""

    gradient: DescentConfig


def _kind_of_start(start: Any) -> str:
    if isinstance(start, Mapping):
        return next((kind for kind in ("study", "gradient") if kind in start), "run")
    if isinstance(start, StudyTrials):
        return "study"
    if isinstance(start, GradientStart):
        return "gradient"
    return "run" if isinstance(start, BestTrials) else "name"


Start = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[BestTrials, Tag("run")]
    | Annotated[StudyTrials, Tag("study")]
    | Annotated[GradientStart, Tag("gradient")],
    Discriminator(_kind_of_start),
]


class StageConfig(Strict):
    """One of several searches, each with the winners of those before it among its experts.

    What is not given is the campaign's own; tasks, splits, models and seed always are.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """The name of the stage, and of its winner as a model of the later stages."""
    space: SpaceConfig
    optimizer: OptimizerConfig | None = None
    initial: list[Start] = Field(default_factory=list)
    trials: int | None = Field(default=None, ge=1)
