"""`fitness.objective` and `fitness.constraints`."""

from __future__ import annotations

from pydantic import Field, model_validator

from evomerge.config.base import NamedConfig, Strict


class ObjectiveConfig(NamedConfig):
    """An objective (`evomerge list objectives`), or a function of yours as `module:function`."""


class NegativeFlipsConfig(Strict):
    """At most this share of items at which `against` does better than the merge."""

    against: str
    """The model whose right answers should stay right: `base` or an expert's name.

    Example: `against: math`
    """
    at_most: float = Field(ge=0, le=1)
    """The greatest share of such items, from 0 to 1.

    Example: `at_most: 0.05`
    """
    task: str | None = None
    """Look at this task only; all, unless given.

    Example: `task: gsm8k`
    """


class NotBelowConfig(Strict):
    """A task's mean lies no more than `by` below that of `model`: a parent, or the best one."""

    task: str
    """The task that must not fall.

    Example: `task: gsm8k`
    """
    model: str = "best_parent"
    """The parent to compare with; `best_parent` is the best on the task.

    Example: `model: base`
    """
    by: float = Field(default=0.0, ge=0)
    """How far below that model the task's mean may lie, in units of the metric.

    Example: `by: 0.02`
    """


class ConstraintConfig(Strict):
    """One constraint, under its name."""

    negative_flips: NegativeFlipsConfig | None = None
    """A limit on items that a parent does better.

    Example: `negative_flips: {against: math, at_most: 0.05}`
    """
    not_below: NotBelowConfig | None = None
    """A limit on how far a task may fall below a parent.

    Example: `not_below: {task: gsm8k, by: 0.02}`
    """

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
