"""Say what is wrong where a campaign file breaks the schema."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from evomerge.common.data_files import quoted
from evomerge.config.base import Scalar
from evomerge.config.campaign import CampaignConfig


def explain(problem: Mapping[str, Any]) -> str:
    """Write one pydantic problem as `key.path: what is wrong, and the way out`."""
    of_pydantic = ("list[", "lax", "kind:")  # parts of a location that no file holds
    location = [str(part) for part in problem["loc"] if not str(part).startswith(of_pydantic)]
    where = ".".join(location) or "campaign"
    if problem["type"] == "extra_forbidden":
        valid = _keys_at(CampaignConfig, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: required, but not given"
    if problem["type"] in ("model_type", "dict_type"):
        return (
            f"{where}: expected a section with keys of its own (found {quoted(problem['input'])})"
        )
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (found {quoted(given)})" if isinstance(given, Scalar | None) else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Find the keys valid at a place in the file by walking the schema."""
    models = [model]
    for part in location:
        field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        if field is None:
            continue  # a list index, or a key of a free mapping
        models = _models_in(field.annotation) or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Collect the models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
