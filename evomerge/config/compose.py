"""`fitness.tasks` entries with `compose`: documents of several tasks joined into one prompt."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict


class ComposeTaskConfig(Strict):
    """Documents of two or three multiple-choice tasks in one prompt, all to be answered: whether a
    merge can do at once what it can do alone (after Skill-Mix and CrossEval).

    A document counts as right where every part is, by its task's own metric; the parts' scores
    stand beside it, as `NAME.PART`.
    """

    compose: list[str] = Field(min_length=2, max_length=3)
    """The multiple-choice tasks whose documents are joined, in the order in which they are asked.
    Use it where a merge should combine skills; give the tasks alone, too, to see what that costs.

    Example: `compose: [arc_easy, piqa]`
    """
    task: str
    """The name of the task; the parts' names with `+` between them, unless it is given.

    Example: `task: both, compose: [arc_easy, piqa]`
    """
    weight: float = Field(default=1.0, gt=0)
    """How much the composed task counts in the objective.

    Example: `weight: 2, compose: [arc_easy, piqa]`
    """
    metrics: dict[str, str] = Field(default_factory=dict)
    """Part → its metric; that of the task's own entry, or `acc`, unless it is given.

    Example: `metrics: {arc_easy: acc_norm}, compose: [arc_easy, piqa]`
    """
    apply_chat_template: bool = False
    """Put the questions in the model's chat template, as a user's message. Turn it on for
    instruction-tuned models.

    Example: `apply_chat_template: true, compose: [arc_easy, piqa]`
    """

    @model_validator(mode="before")
    @classmethod
    def _is_named_after_its_parts(cls, data: Any) -> Any:
        if isinstance(data, dict) and "task" not in data and isinstance(data.get("compose"), list):
            return {**data, "task": "+".join(map(str, data["compose"]))}
        return data

    @field_validator("compose")
    @classmethod
    def _parts_are_named_once(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) < len(parts):
            raise ValueError("names a task twice; each part is another task")
        return parts

    @model_validator(mode="after")
    def _metrics_are_of_parts(self) -> ComposeTaskConfig:
        if unknown := sorted(set(self.metrics) - set(self.compose)):
            raise ValueError(
                f"metrics: {unknown[0]} is none of the parts, {', '.join(self.compose)}"
            )
        return self
