"""`models` and `dtype`: the models that are merged, and the dtypes of weights and computing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict

FloatType = Literal["float32", "float16", "bfloat16"]


UNION = "union"
"""The tokenizer source that stands for the tokens of all models."""


class TokenOfModel(Strict):
    """The row of one model's token, by its text or by its number."""

    kind: Literal["model_token"]
    """`model_token`: the row of a token of a model; `zero`: a row of zeros.

    Example: `kind: model_token, model: base, token: the`
    """
    model: str
    """The model that has the token: `base` or an expert's name.

    Example: `kind: model_token, model: base, token: the`
    """
    token: str | None = None
    """The token's text.

    Example: `token: the`
    """
    token_id: int | None = Field(default=None, ge=0)
    """The token's number in the model's own vocabulary, in the place of `token`.

    Example: `kind: model_token, model: base, token_id: 5`
    """

    @model_validator(mode="after")
    def _names_one_token(self) -> TokenOfModel:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either token or token_id")
        return self


class ZeroRow(Strict):
    """A row of zeros."""

    kind: Literal["zero"]
    """`zero`: a row of zeros.

    Example: `kind: zero`
    """


class TokenRow(Strict):
    """The row of one token, in models that lack the token; with `force` in every model.

    `source` is a model that has the token, a token of a model, or zeros. Without it the row is
    found as that of any other token.
    """

    source: str | TokenOfModel | ZeroRow | None = None
    """A model that has the token, a token of a model, or zeros. Without it the row is found as
    that of any other token.

    Example: `source: base`
    """
    force: bool = False
    """Give the row to every model, also to those that have the token.

    Example: `source: base, force: true`
    """

    @model_validator(mode="after")
    def _forces_something(self) -> TokenRow:
        if self.force and self.source is None:
            raise ValueError("force needs a source")
        return self

    @property
    def model(self) -> str | None:
        """The model that the row is taken of, if it is one's."""
        if isinstance(self.source, TokenOfModel):
            return self.source.model
        return self.source if isinstance(self.source, str) else None


class TokenizerConfig(Strict):
    """The tokens of the result, and the embedding rows of tokens that not every model has.

    Tokens are matched by their text, whatever number each model gives them. A token that a model
    lacks has, in this model, the row of the only model that has it; of several, the base's if the
    base is one of them and `missing` is `base`, else their mean. Where no model has it, zeros.
    """

    source: str = UNION
    """`base` or the name of an expert, whose tokenizer the result has; `union` for the base's
    with the tokens of all experts added.

    Example: `source: union`
    """
    tokens: dict[str, TokenRow] = Field(default_factory=dict)
    """Token → its row; a token that the tokenizer lacks is added to it. Give one for a special
    token that experts mean differently.

    Example: `tokens: {<|im_end|>: {source: base}}`
    """
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    """The number of rows is rounded up to it; rows beyond the tokens are the mean of all
    others. Give 64 for speed on GPUs.

    Example: `pad_to_multiple_of: 64`
    """
    chat_template: str | None = None
    """chatml, llama3, mistral, alpaca, exaone, auto (what most models have), a Jinja template
    or, in a campaign file, the path of one.

    Example: `chat_template: chatml`
    """
    missing: Literal["base", "mean"] = "base"
    """Where several models have a token that another lacks: the base's row, or the mean of
    theirs.

    Example: `missing: mean`
    """

    def models(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the name of every model that is named."""
        if self.source != UNION:
            yield "source", self.source
        for token, row in self.tokens.items():
            if row.model is not None:
                yield f"tokens.{token}", row.model


class ModelsConfig(Strict):
    """The base model and its experts: folders, or hub ids with an optional `@revision`.

    The experts that `align` names have their MLP units and attention heads brought into the base's
    order before they are merged (Git Re-Basin), for experts that were permuted or that share little
    training with the base. `tokenizer` gives the result tokens that not every model has; without it
    the result has the base's, and every model must number its tokens as the base does.
    `statistics` names calibration files, which some methods need. `allow_locked` lets experts pass
    that look locked against merging.
    """

    base: str
    """The model that the experts were finetuned from: a folder, or a hub id with an optional
    `@revision`.

    Example: `base: meta-llama/Llama-3.1-8B`
    """
    experts: dict[str, str]
    """Name → folder, hub id or LoRA adapter. The name stands in genes, figures and reports. Only a
    campaign that makes the base smaller (`space.mixture` alone) may have none: `{}`.

    Example: `experts: {math: org/math, code: org/code@main}`
    """
    align: list[str] = Field(default_factory=list)
    """Experts whose units are first brought into the base's order (Git Re-Basin). Use it where
    an expert shares little training with the base.

    Example: `align: [math]`
    """
    tokenizer: TokenizerConfig | None = Field(
        default=None, exclude_if=lambda tokenizer: tokenizer is None
    )
    """The tokens of the result. Give it where models number their tokens differently.

    Example: `tokenizer: {source: union}`
    """
    statistics: dict[str, str] = Field(default_factory=dict, exclude_if=lambda given: not given)
    """Model → its calibration file, which `evomerge calibrate` writes or someone published: a
    file, a folder with one, or a hub id. Methods such as `fisher` and `regmean` need one of every
    expert; `aim` needs one of `base`.

    Example: `statistics: {math: statistics/math.safetensors, code: org/code-statistics}`
    """
    allow_locked: bool = False
    """Take experts that look locked against merging: their attention weights were transformed so
    that the model works alone, and merges of it do not (MergeLock).

    Example: `allow_locked: true`
    """
    allow_pickle: bool = False
    """Read weights that are pickled. Only for files that you trust: they can run code.

    Example: `allow_pickle: true`
    """
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint. Only for code that you have read.

    Example: `trust_remote_code: true`
    """

    @model_validator(mode="after")
    def _aligned_are_experts(self) -> ModelsConfig:
        for name in self.align:
            if name not in self.experts:
                raise ValueError(
                    f"align: no expert {name!r}; the experts are {', '.join(self.experts)}"
                )
        return self

    @model_validator(mode="after")
    def _statistics_are_of_models(self) -> ModelsConfig:
        for name in self.statistics:
            self.check_name("statistics", name)
        return self

    @model_validator(mode="after")
    def _tokens_are_of_models(self) -> ModelsConfig:
        if self.tokenizer is not None and UNION in self.experts:
            raise ValueError(
                f"experts: {UNION!r} is what tokenizer.source calls all models; rename"
            )
        for key, name in self.tokenizer.models() if self.tokenizer else ():
            self.check_name(f"tokenizer.{key}", name)
        return self

    def check_name(self, key: str, name: str) -> None:
        """Refuse a model that there is not; the message begins with `key`.

        Raises:
            ValueError: neither the base nor an expert is called so.
        """
        names = ["base", *self.experts]
        if name not in names:
            raise ValueError(f"{key}: no model {name!r}; the models are {', '.join(names)}")

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
    """The dtypes of candidates' weights, and of computing their scores."""

    weights: Literal["checkpoint"] | FloatType = "checkpoint"
    """What candidates are rounded to; `checkpoint` is the base's own, so that the export holds
    the bytes that were scored.

    Example: `weights: bfloat16`
    """
    compute: Literal["auto"] | FloatType = "auto"
    """What candidates are scored in; `auto` is float32 on CPU and bfloat16 on GPUs.

    Example: `compute: float32`
    """
