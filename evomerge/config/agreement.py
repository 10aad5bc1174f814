"""`fitness.tasks` entries with `agreement`: prompts without labels, answered as an expert would."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from evomerge.config.base import Strict


class AgreementConfig(Strict):
    """Whom a merge should agree with, and on which prompts."""

    expert: str
    """The model whose answers count: an expert's name, or `base`.

    Example: `expert: math, prompts: prompts.jsonl`
    """
    prompts: str
    """A file of JSON objects, one a line, each with a `prompt` or a `text`. No labels are needed.

    Example: `expert: math, prompts: prompts.jsonl`
    """
    tokens: int = Field(default=32, ge=1)
    """The most tokens of the expert's answer that are compared. Raise it where answers need a
    beginning before they say anything.

    Example: `expert: math, prompts: prompts.jsonl, tokens: 128`
    """
    apply_chat_template: bool = False
    """Put prompts in the model's chat template, as a user's message. Turn it on for
    instruction-tuned models.

    Example: `expert: math, prompts: prompts.jsonl, apply_chat_template: true`
    """


class AgreementTaskConfig(Strict):
    """Agreement with an expert on prompts, as a task: no labels are needed.

    A prompt's score, from 0 to 1, is the share of the tokens of the expert's own greedy answer that
    the merge would say there, too. The expert itself scores 1, so agreement is no accuracy: give
    each expert prompts of its own, and no parent agrees with all of them.
    """

    agreement: AgreementConfig
    """Score a merge by how often it says what an expert says. Use it where prompts have no labels.

    Example: `agreement: {expert: math, prompts: prompts.jsonl}`
    """
    task: str
    """The name of the task; `agreement_` and the expert's, unless it is given.

    Example: `task: like_math, agreement: {expert: math, prompts: prompts.jsonl}`
    """
    weight: float = Field(default=1.0, gt=0)
    """How much the agreement counts in the objective.

    Example: `weight: 2, agreement: {expert: math, prompts: prompts.jsonl}`
    """

    @model_validator(mode="before")
    @classmethod
    def _is_named_after_its_expert(cls, data: Any) -> Any:
        if isinstance(data, dict) and "task" not in data:
            about = data.get("agreement")
            named = about.get("expert") if isinstance(about, dict) else about
            return {**data, "task": f"agreement_{getattr(named, 'expert', named)}"}
        return data
