"""Make a campaign of a mergekit-evolve file or a mergekit recipe, with what the machine knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.common.data_files import read_text, yaml_documents
from evomerge.common.errors import InputError, ModelNotFoundError
from evomerge.config import Draft, ModelsConfig, seen_from
from evomerge.mergekit.from_evolve import from_evolve, is_evolve
from evomerge.mergekit.from_recipe import from_recipe
from evomerge.mergekit.reader import load_mergekit
from evomerge.preflight.machine import this_machine
from evomerge.preflight.propose import (
    Asked,
    Choice,
    complete,
    config_folders,
    has_template,
    layout_of_models,
)
from evomerge.recipe import BASE

if TYPE_CHECKING:
    from evomerge.mergekit.merge import LayerSpan
    from evomerge.models.layout import Layout

_LAYERS = 32
"""Layers that models are taken to have where no config is here and the recipe does not say."""


def convert(file: Path, asked: Asked, options: str = "") -> tuple[Draft, list[Choice]]:
    """Turn a file into a draft whose paths are as seen from `asked.folder`.

    Args:
        file: of mergekit-evolve (it has a `genome`) or a mergekit recipe; its relative paths begin
            at its own folder or at the current one.
        asked: tasks that are added to the file's, goal and hours.
        options: what mergekit-evolve was run with.

    Raises:
        InputError: the file cannot be read or says what evomerge does not do; models that are here
            do not fit together; names the key.
    """
    text, places = read_text(file), (file.parent, Path.cwd())
    evolve = any(is_evolve(data) for data in yaml_documents(text, str(file)))
    if options and not evolve:
        raise InputError(f"{file}: --evolve-options are mergekit-evolve's; this is no file of its")
    if evolve:
        draft = from_evolve(text, str(file), options, len(this_machine().gpus))
        models = draft.data["models"]
        layout, template, missing = _look({BASE: models[BASE], **models["experts"]}, places, asked)
    else:
        merge = load_mergekit(file)
        layout, template, missing = _look(merge.models, places, asked)
        draft = from_recipe(merge, layout or _stand_in(merge.spans))
    if missing:
        told = "values are read as of a Llama" if not evolve else "genes are not counted"
        draft = replace(draft, unmatched=(*draft.unmatched, f"{missing}: {told}"))
    draft, choices = complete(draft, asked, layout, template)
    return _seen_from(asked.folder, draft, places), choices


def _look(
    models: Mapping[str, str], places: Iterable[Path], asked: Asked
) -> tuple[Layout | None, bool | None, str]:
    """Return the models' layout, whether the base has a chat template, and which is not here."""
    here = {name: seen_from(Path.cwd(), spec, *places) for name, spec in models.items()}
    experts = {name: spec for name, spec in here.items() if name != BASE}
    if not experts:
        return None, None, ""
    try:
        with config_folders(
            ModelsConfig(base=here[BASE], experts=experts), asked.download
        ) as folders:
            return layout_of_models(folders), has_template(folders), ""
    except ModelNotFoundError as error:
        return None, None, str(error).partition(";")[0]


def _stand_in(spans: Sequence[LayerSpan]) -> Layout:
    """Return the layout of a Llama as deep as the recipe's slices say."""
    from transformers import LlamaConfig

    from evomerge.models.layout import derive_layout

    ends = [span.start + span.layers for span in spans if span.layers is not None]
    small = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "num_attention_heads": 1}
    return derive_layout(
        LlamaConfig(**small, num_hidden_layers=max(ends, default=_LAYERS), num_key_value_heads=1)
    )


def _seen_from(folder: Path, draft: Draft, places: Iterable[Path]) -> Draft:
    """Write the paths of models and starts as the campaign file names them."""
    at = tuple(places)
    models = draft.data["models"]
    experts = {name: seen_from(folder, spec, *at) for name, spec in models["experts"].items()}
    data = {
        **draft.data,
        "models": {**models, BASE: seen_from(folder, models[BASE], *at), "experts": experts},
    }
    if "initial" in data:  # the recipe's own path begins here, not at its folder
        data["initial"] = [
            start if start == "uniform" else seen_from(folder, start) for start in data["initial"]
        ]
    return replace(draft, data=data)
