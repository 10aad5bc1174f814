"""`models` and `dtype`: the models that are merged, and the dtypes of weights and computing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict

FloatType = Literal["float32", "float16", "bfloat16"]


class ModelsConfig(Strict):
    """The base model and its experts: folders, or hub ids with an optional `@revision`.

    The experts that `align` names have their MLP units and attention heads brought into the base's
    order before they are merged (Git Re-Basin), for experts that were permuted or that share little
    training with the base. `allow_locked` lets experts pass that look locked against merging.
    """

    base: str
    experts: dict[str, str] = Field(min_length=1)
    align: list[str] = Field(default_factory=list)
    allow_locked: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _aligned_are_experts(self) -> ModelsConfig:
        for name in self.align:
            if name not in self.experts:
                raise ValueError(
                    f"align: no expert {name!r}; the experts are {', '.join(self.experts)}"
                )
        return self

    @field_validator("experts")
    @classmethod
    def _names_are_usable(cls, experts: dict[str, str]) -> dict[str, str]:
        for name in experts:
            if name == "base":
                raise ValueError("an expert may not be called 'base', the base model's own name")
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"expert name {name!r} may hold letters, digits, '-' and '_' only; "
                    "it becomes part of parameter names"
                )
        return experts


class DtypeConfig(Strict):
    """`weights`: what candidates are rounded to. `compute`: what they are scored in."""

    weights: Literal["checkpoint"] | FloatType = "checkpoint"
    compute: Literal["auto"] | FloatType = "auto"
