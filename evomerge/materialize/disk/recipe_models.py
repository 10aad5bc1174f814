"""Recipes as models: each is merged once, kept, and then a checkpoint like any other.

They are kept in `$EVOMERGE_CACHE/recipes`, by default in the user's cache, and not in a run's
folder: a recipe has the same weights in every run, and models are opened before there is a run.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.config import ModelsConfig
from evomerge.materialize.disk.provenance import (
    RECIPE_FILE,
    SOURCES_FILE,
    Provenance,
    Trust,
    check_trust,
    load_sources,
)
from evomerge.models.messages import campaign_key
from evomerge.recipe import BASE, load_recipe


def with_recipes_made(models: ModelsConfig) -> ModelsConfig:
    """The same models, with the checkpoint in place of every recipe.

    Raises:
        InputError: a recipe cannot be merged; names it.
        NonFiniteError: a merged tensor is not finite.
    """
    specs = {BASE: models.base, **models.experts}
    trust = Trust(models.allow_pickle, models.trust_remote_code)
    made = {name: _made(name, spec, trust) for name, spec in specs.items()}
    if made == specs:
        return models
    base = made.pop(BASE)
    return models.model_copy(update={"base": base, "experts": made})


def kept(lineage: Provenance) -> str:
    """A folder with the files of a recipe whose own are gone, to be given as a model."""
    folder = _cache() / f"{content_digest(lineage.model_dump(mode='json'))}-recipe"
    lineage.write(folder)
    return str(folder)


def _made(name: str, spec: str, trust: Trust) -> str:
    path = _recipe_at(Path(spec))
    if path is None:
        return spec
    try:
        return str(_checkpoint_of(path, trust))
    except InputError as error:
        raise InputError(f"{campaign_key(name)}: {error}") from None


def _recipe_at(place: Path) -> Path | None:
    """The recipe's file, where a spec is one, or a folder of one without its weights."""
    if place.suffix == ".json" and place.is_file():
        return place
    if (place / RECIPE_FILE).is_file() and not (place / "config.json").exists():
        return place / RECIPE_FILE
    return None


def _checkpoint_of(path: Path, trust: Trust) -> Path:
    from evomerge.export.merge import merge_file  # which makes the recipes among its sources

    recipe, beside = load_recipe(path), path.parent / SOURCES_FILE
    if not beside.is_file():
        raise InputError(
            f"{path}: there is no {SOURCES_FILE} beside it that says where its models lie; merge "
            "it (evomerge merge, with --base and --expert) and give the result"
        )
    sources = load_sources(beside)
    check_trust(sources, beside, trust)
    decisive = {"weights", "tokenizer", "chat_template"}
    key = {"recipe": recipe.digest, **sources.model_dump(mode="json", include=decisive)}
    folder = _cache() / content_digest(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            merge_file(path, folder, {}, None, trust=trust)
    return folder


def _cache() -> Path:
    given = os.environ.get("EVOMERGE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or f"{home}/evomerge").expanduser().resolve() / "recipes"
