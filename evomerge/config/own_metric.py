"""`fitness.tasks` entries with `callable`: metrics of the user's own."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict


class CallableConfig(Strict):
    """A metric of your own: `module:function`, called as `function(model, tokenizer, items)`.

    It gets the transformers model with the candidate's weights, the tokenizer, and some of the
    documents as dicts, and returns one number for each; an item's number may not depend on which
    others are asked with it. `module` is a file of the campaign file's folder (`metrics` or
    `metrics.py`), or an installed module; `documents` is a file of JSON objects, one a line.
    """

    callable: str
    """The function, as `module:function`.

    Example: `callable: 'metrics:politeness', documents: questions.jsonl`
    """
    documents: str
    """A file of JSON objects, one a line.

    Example: `callable: 'metrics:politeness', documents: questions.jsonl`
    """
    task: str
    """The name of the task; the function's, unless it is given.

    Example: `task: polite, callable: 'metrics:politeness', documents: questions.jsonl`
    """
    weight: float = Field(default=1.0, gt=0)
    """How much the metric counts in the objective.

    Example: `weight: 2, callable: 'metrics:politeness', documents: questions.jsonl`
    """
    higher_is_better: bool = True
    """False where a small number is good.

    Example: `higher_is_better: false, callable: 'metrics:seconds', documents: questions.jsonl`
    """

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
