"""`evomerge merge`: a recipe or a mergekit file as a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig, resolve_spec
from evomerge.export.again import compared
from evomerge.export.folder import Origin, export_recipe, holds
from evomerge.materialize.disk.checkpoint import check_free
from evomerge.materialize.disk.provenance import (
    NO_TRUST,
    SOURCES_FILE,
    Sources,
    Trust,
    check_trust,
    load_sources,
)
from evomerge.materialize.disk.recipe_models import kept, with_recipes_made
from evomerge.materialize.disk.stream import SHARD_BYTES
from evomerge.mergekit import MergekitMerge, load_stages
from evomerge.models.checks.checked_models import CheckedModels, check_models
from evomerge.models.checks.tokenizer import load_tokenizer, tokens_by_id
from evomerge.recipe import BASE, Recipe, load_recipe


def merge_file(
    path: Path,
    to: Path,
    given: Mapping[str, str],
    weights: str | None,
    shard_bytes: int = SHARD_BYTES,
    trust: Trust = NO_TRUST,
) -> tuple[Path, Sequence[str]]:
    """Merge what a file says into a new checkpoint folder.

    Where a recipe's weights were recorded when it was exported, the result is compared with them.

    The stages of a mergekit file are merged beside it, into `<to>-stages`, and stay there: they
    are the models of what is merged of them. One that is there already is not merged again.

    Args:
        path: a recipe (`.json`), or a mergekit file (`.yaml`, `.yml`).
        given: source name → folder or hub id, before what the file, or the `evomerge.json` beside
            a recipe, says.
        weights: the dtype of the result, before what these say.
        trust: what may be opened. A file that needs more is refused: whoever wrote it is not who
            merges it.

    Returns:
        The folder, and what is worth telling the user, one line each.

    Raises:
        InputError: a file or a model cannot be used, or the models are not the recipe's.
        NonFiniteError: a merged tensor is not finite.
    """
    if path.suffix in (".yaml", ".yml"):
        return _merge_stages(load_stages(path), path, to, given, weights, shard_bytes, trust)
    recipe = load_recipe(path)
    beside = path.parent / SOURCES_FILE
    sources = load_sources(beside) if beside.is_file() else None
    if sources is not None:
        check_trust(sources, beside, trust)
    origin = _origin(recipe, sources, path, given, weights, trust)
    folder = export_recipe(recipe, origin, to, shard_bytes=shard_bytes)
    told = compared(folder, recipe, sources)
    return folder, [*origin.models.notes, *([told] if told else [])]


def _origin(
    recipe: Recipe,
    sources: Sources | None,
    path: Path,
    given: Mapping[str, str],
    weights: str | None,
    trust: Trust,
) -> Origin:
    """A recipe names its sources by digest; where they lie is given, or stands beside it."""
    _check_given(given, recipe.sources, path)
    specs = {**(_places(sources) if sources else {}), **_resolved(given)}
    lacking = [_option(name) for name in recipe.sources if name not in specs]
    if lacking:
        raise InputError(
            f"{path}: a recipe holds its models' digests, not their places, and there is no "
            f"{SOURCES_FILE} beside it that says them; add {' '.join(lacking)}"
        )
    align = [name for name in sources.align if name in recipe.sources] if sources else []
    config = _config({name: specs[name] for name in recipe.sources}, trust, align)
    stated = sources.weights if sources else "checkpoint"
    return Origin(
        config,
        _open(config, path),
        _dtype(weights or stated),
        tokenizer=sources.tokenizer if sources else BASE,
        chat_template=sources.chat_template if sources else None,
    )


def _places(sources: Sources) -> dict[str, str]:
    """Where the models lie; of merges that are gone, where they can be made again."""
    models = _resolved(sources.models)
    gone = {n: made for n, made in sources.recipes.items() if not Path(models[n]).exists()}
    return {**models, **{name: kept(made) for name, made in gone.items()}}


def _merge_stages(
    stages: Sequence[MergekitMerge],
    path: Path,
    to: Path,
    given: Mapping[str, str],
    weights: str | None,
    shard_bytes: int,
    trust: Trust,
) -> tuple[Path, Sequence[str]]:
    _check_given(given, {name: "" for stage in stages for name in stage.models}, path)
    to = check_free(to)
    folder = to.with_name(f"{to.name}-stages")
    made: dict[str | None, Path] = {}
    notes: dict[str, None] = {}
    for number, stage in enumerate(stages, 1):
        last = stage is stages[-1]
        place = to if last else folder / f"{number}-{_slug(stage.name or '')}"
        recipe, origin = _stage(stage, path, given, made, weights if last else None, trust)
        notes |= dict.fromkeys([*origin.models.notes, *stage.notes])
        if last or not holds(place, recipe):
            export_recipe(recipe, origin, place, shard_bytes=shard_bytes)
        made[stage.name] = place
    if len(stages) > 1:
        notes[f"the stages are in {folder}; the result's recipe is over them"] = None
    return to, list(notes)


def _stage(
    merge: MergekitMerge,
    path: Path,
    given: Mapping[str, str],
    made: Mapping[str | None, Path],
    weights: str | None,
    trust: Trust,
) -> tuple[Recipe, Origin]:
    """A merge names its models by path: an earlier stage, else from the file's own folder, else
    from the current one.
    """
    folder = path.parent.resolve()
    places = {}
    for name, spec in merge.models.items():
        if spec in made:
            places[name] = str(made[spec])
            continue
        beside = resolve_spec(spec, folder)
        places[name] = beside if Path(beside).exists() else resolve_spec(spec, Path.cwd())
    own = {
        name: spec for name, spec in given.items() if merge.models.get(name) not in (None, *made)
    }
    config = _config({**places, **_resolved(own)}, trust)
    models = _open(config, path)
    if merge.tokenizer != BASE:
        _check_tokenizer(models, merge.tokenizer, merge.where, trust)
    digests = {name: source.digest for name, source in models.sources.items()}
    template = merge.chat_template
    return merge.recipe(models.layout, digests), Origin(
        config,
        models,
        _dtype(weights or merge.weights),
        tokenizer=merge.tokenizer,
        chat_template=_commonest_template(models, trust) if template == "auto" else template,
    )


def _check_tokenizer(models: CheckedModels, name: str, where: str, trust: Trust) -> None:
    """Refuse a tokenizer with tokens that the result has no rows for."""
    folder = models.sources[name].folder
    tokenizer = load_tokenizer(folder, trust_remote_code=trust.remote_code)
    tokens = {} if tokenizer is None else tokens_by_id(tokenizer)
    rows = models.layout.vocab_size
    if not tokens or max(tokens) >= rows:
        has = f"has token {max(tokens)}" if tokens else "has no tokenizer"
        raise InputError(
            f"{where}: tokenizer_source: {models.sources[name].spec} {has}, and the result's "
            f"vocabulary has the base's {rows} rows; say base"
        )


def _commonest_template(models: CheckedModels, trust: Trust) -> str | None:
    """The chat template that most of the models have, of several the first."""
    return next((text for text, _ in Counter(_templates(models, trust)).most_common(1)), None)


def _templates(models: CheckedModels, trust: Trust) -> Iterator[str]:
    for source in models.sources.values():
        tokenizer = load_tokenizer(source.folder, trust_remote_code=trust.remote_code)
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            yield template.strip()


def _check_given(given: Mapping[str, str], known: Mapping[str, str], path: Path) -> None:
    for name in given:
        if name not in known:
            raise InputError(
                f"--expert {name}: {path} has no such source; it has {', '.join(known)}"
            )


def _resolved(given: Mapping[str, str]) -> dict[str, str]:
    return {name: resolve_spec(spec, Path.cwd()) for name, spec in given.items()}


def _dtype(weights: str) -> DtypeConfig:
    return DtypeConfig.model_validate({"weights": weights})


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")


def _config(specs: Mapping[str, str], trust: Trust, align: Sequence[str] = ()) -> ModelsConfig:
    """What a file says is merged as it says: a model that looks locked is told, not refused."""
    base, experts = specs[BASE], {name: spec for name, spec in specs.items() if name != BASE}
    # A campaign needs an expert, which is why the config asks for one; a copy of a model has none.
    make = ModelsConfig if experts else ModelsConfig.model_construct
    return make(
        base=base,
        experts=experts,
        align=list(align),
        allow_locked=True,
        allow_pickle=trust.pickle,
        trust_remote_code=trust.remote_code,
    )


def _open(config: ModelsConfig, path: Path) -> CheckedModels:
    try:
        return check_models(with_recipes_made(config), base_again=True)
    except InputError as error:
        raise InputError(
            f"{error}\n{path}: if a model lies elsewhere now, say so: "
            f"{' '.join(_option(name) for name in (BASE, *config.experts))}"
        ) from None


def _option(name: str) -> str:
    return "--base PATH" if name == BASE else f"--expert {name}=PATH"
