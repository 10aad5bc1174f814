"""Parse a mergekit file into the keys that evomerge reads; others are refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from evomerge.common.data_files import yaml_documents
from evomerge.common.errors import InputError
from evomerge.common.wrong_values import what_was_expected
from evomerge.config import UNION, Strict, TokenRow


def _reference(raw: Any) -> Any:
    """Write mergekit's longer forms of a model, `{model, lora}` and `{path, revision}`, as text."""
    if not isinstance(raw, dict):
        return raw
    if raw.keys() <= {"path", "revision"} and "path" in raw:
        return "@".join(
            str(part) for part in (raw["path"], raw.get("revision")) if part is not None
        )
    if raw.keys() <= {"model", "lora"} and "model" in raw:
        parts = (_reference(part) for part in (raw["model"], raw.get("lora")) if part is not None)
        return "+".join(map(str, parts))
    return raw


Reference = Annotated[str, BeforeValidator(_reference)]
"""A model: a folder or hub id, `MODEL@REVISION`, and with an adapter on it `MODEL+ADAPTER`."""


class ModelEntry(Strict):
    """One model and its own parameters.

    mergekit ignores a `lora` beside `model`; here it means `MODEL+ADAPTER`.
    """

    model: Reference
    lora: Reference | None = None
    parameters: dict[str, Any] | None = None

    @property
    def reference(self) -> str:
        """The model as one text, with its adapter."""
        return self.model if self.lora is None else f"{self.model}+{self.lora}"


class SliceSource(ModelEntry):
    """Layers `layer_range[0]` up to, without, `layer_range[1]` of a model."""

    layer_range: tuple[int, int]


class SliceEntry(Strict):
    """Consecutive layers of the result."""

    sources: list[SliceSource] = Field(min_length=1)
    base_model: Reference | None = None
    parameters: dict[str, Any] | None = None


class Tokenizer(Strict):
    """The tokens of the result: a model's, the base's or a union, and rows of single tokens."""

    source: Reference = UNION
    tokens: dict[str, TokenRow] | None = None
    pad_to_multiple_of: int | None = Field(default=None, ge=1)


class Document(Strict):
    """One merge: the whole file, or a stage of it, which others know by its `name`.

    Older files call the name `out_path`.
    """

    name: str | None = None
    out_path: str | None = None
    merge_method: str
    base_model: Reference | None = None
    models: list[ModelEntry] | None = None
    slices: list[SliceEntry] | None = None
    parameters: dict[str, Any] | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Reference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None


def parse_documents(text: str, where: str) -> list[Document]:
    """Check the form of a mergekit file's text: one document, or the stages of several merges.

    Raises:
        InputError: not YAML, or a key that is unknown, missing or of another type; one line each.
    """
    documents = [data for data in yaml_documents(text, where) if data is not None]
    if not documents or not all(isinstance(data, dict) for data in documents):
        raise InputError(f"{where}: expected a mapping with the keys of a mergekit file")
    if len(documents) == 1:
        return [_document(documents[0], where)]
    return [_document(data, f"{where}: document {i}") for i, data in enumerate(documents, 1)]


def _document(data: Any, where: str) -> Document:
    try:
        return Document.model_validate(data)
    except ValidationError as error:
        lines = [f"{where}: {_explain(problem)}" for problem in error.errors()]
        raise InputError("\n".join(lines)) from None


def _explain(problem: Any) -> str:
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{place}: evomerge does not read this key of mergekit's"
    if problem["type"] == "missing":
        return f"{place}: required, but not given"
    return f"{place}: {what_was_expected([problem])}"
