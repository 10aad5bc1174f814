"""`evomerge merge`: a recipe or a mergekit file as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.config import DtypeConfig, ModelsConfig, resolve_spec
from evomerge.errors import InputError
from evomerge.export.folder import SOURCES_FILE, Origin, export_recipe, load_sources
from evomerge.models.preflight import Preflight, preflight
from evomerge.recipe import BASE, Recipe, load_recipe
from evomerge.recipe.mergekit import load_mergekit


def merge_file(
    path: Path, to: Path, given: Mapping[str, str], weights: str | None
) -> tuple[Path, Sequence[str]]:
    """Merge what a file says into a new checkpoint folder.

    Args:
        path: a recipe (`.json`), or a mergekit file (`.yaml`, `.yml`).
        given: source name → folder or hub id, before what the file, or the `evomerge.json` beside
            a recipe, says.
        weights: the dtype of the result, before what these say.

    Returns:
        The folder, and what is worth telling the user, one line each.

    Raises:
        InputError: a file or a model cannot be used, or the models are not the recipe's.
        NonFiniteError: a merged tensor is not finite.
    """
    read = _mergekit if path.suffix in (".yaml", ".yml") else _recipe
    recipe, config, models, stated, notes = read(path, given)
    origin = Origin(config, models, DtypeConfig.model_validate({"weights": weights or stated}))
    return export_recipe(recipe, origin, to), [*models.notes, *notes]


_Read = tuple[Recipe, ModelsConfig, Preflight, str, Sequence[str]]


def _recipe(path: Path, given: Mapping[str, str]) -> _Read:
    """A recipe names its sources by digest; where they lie is given, or stands beside it."""
    recipe = load_recipe(path)
    beside = path.parent / SOURCES_FILE
    sources = load_sources(beside) if beside.is_file() else None
    specs = _with_given(sources.models if sources else {}, given, recipe.sources, path)
    lacking = [_option(name) for name in recipe.sources if name not in specs]
    if lacking:
        raise InputError(
            f"{path}: a recipe holds its models' digests, not their places, and there is no "
            f"{SOURCES_FILE} beside it that says them; add {' '.join(lacking)}"
        )
    trusted = (sources.allow_pickle, sources.trust_remote_code) if sources else ()
    config = _config({name: specs[name] for name in recipe.sources}, *trusted)
    return recipe, config, _open(config, path), sources.weights if sources else "checkpoint", ()


def _mergekit(path: Path, given: Mapping[str, str]) -> _Read:
    """A mergekit file names its models by path: from its own folder, else from the current one."""
    merge = load_mergekit(path)
    folder = path.parent.resolve()
    places = {
        name: resolve_spec(spec, folder if (folder / spec).exists() else Path.cwd())
        for name, spec in merge.models.items()
    }
    config = _config(_with_given(places, given, places, path))
    models = _open(config, path)
    digests = {name: source.digest for name, source in models.sources.items()}
    return merge.recipe(models.layout, digests), config, models, merge.weights, merge.notes


def _with_given(
    specs: Mapping[str, str], given: Mapping[str, str], known: Mapping[str, str], path: Path
) -> dict[str, str]:
    for name in given:
        if name not in known:
            raise InputError(
                f"--expert {name}: {path} has no such source; it has {', '.join(known)}"
            )
    return {**specs, **{name: resolve_spec(spec, Path.cwd()) for name, spec in given.items()}}


def _config(
    specs: Mapping[str, str], allow_pickle: bool = False, trust_remote_code: bool = False
) -> ModelsConfig:
    base, experts = specs[BASE], {name: spec for name, spec in specs.items() if name != BASE}
    # A campaign needs an expert, which is why the config asks for one; a copy of a model has none.
    make = ModelsConfig if experts else ModelsConfig.model_construct
    return make(
        base=base,
        experts=experts,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )


def _open(config: ModelsConfig, path: Path) -> Preflight:
    try:
        return preflight(config)
    except InputError as error:
        raise InputError(
            f"{error}\n{path}: if a model lies elsewhere now, say so: "
            f"{' '.join(_option(name) for name in (BASE, *config.experts))}"
        ) from None


def _option(name: str) -> str:
    return "--base PATH" if name == BASE else f"--expert {name}=PATH"
