"""Models to merge: those a file names are opened, and recipes among them are merged first.

A recipe given as a model is merged once, into `$EVOMERGE_CACHE/recipes` (by default in the user's
cache), and is a checkpoint like any other from then on. It does not lie in a run's folder: a recipe
has the same weights in every run, and models are opened before there is a run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from evomerge.common.data_files import cache_folder
from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError, ModelNotFoundError
from evomerge.config import (
    DtypeConfig,
    ModelsConfig,
    TokenizerConfig,
    adapters_alone,
    resolve_spec,
)
from evomerge.materialize.disk.checkpoint import write_merge
from evomerge.materialize.disk.provenance import (
    NO_TRUST,
    RECIPE_FILE,
    SOURCES_FILE,
    MergeInputs,
    Provenance,
    Sources,
    Trust,
    check_trust,
    load_sources,
)
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.models.calibrations import is_gone
from evomerge.models.checks.checked_models import check_models
from evomerge.models.checks.digests import calibration_digests
from evomerge.models.messages import campaign_key
from evomerge.recipe import BASE, Recipe, load_recipe


def with_recipes_made(models: ModelsConfig) -> ModelsConfig:
    """Return the same models with a checkpoint in place of every recipe, merging what is not yet.

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


def open_recipe(
    path: Path,
    given: Mapping[str, str] | None = None,
    weights: str | None = None,
    trust: Trust = NO_TRUST,
    statistics: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Recipe, MergeInputs, Sources | None]:
    """Open the models of a recipe's file.

    A recipe names its sources by digest; where they lie is given, or stands in the `evomerge.json`
    beside it.

    Args:
        given: source name → folder or hub id, before what `evomerge.json` says.
        weights: the dtype of the result, before what `evomerge.json` says.
        trust: what may be opened. A file that needs more is refused: whoever wrote it is not who
            merges it.
        statistics: source name → calibration file, before what `evomerge.json` says.

    Returns:
        The recipe, its models, and the content of `evomerge.json` if there is one.

    Raises:
        InputError: a file or a model cannot be used.
    """
    given = given or {}
    recipe, beside = load_recipe(path), path.parent / SOURCES_FILE
    sources = load_sources(beside) if beside.is_file() else None
    if sources is not None:
        check_trust(sources, beside, trust)
    check_given(given, recipe.sources, path)
    check_given(statistics, recipe.sources, path, "--statistics")
    specs = {**(_places(sources) if sources else {}), **resolved(given)}
    lacking = [_option(name) for name in recipe.sources if name not in specs]
    if lacking:
        raise InputError(
            f"{path}: a recipe holds its models' digests, not their places, and there is no "
            f"{SOURCES_FILE} beside it that says them; add {' '.join(lacking)}"
        )
    inputs = open_inputs(
        {name: specs[name] for name in recipe.sources},
        path,
        weights or (sources.weights if sources else "checkpoint"),
        trust,
        align=[name for name in sources.align if name in recipe.sources] if sources else (),
        tokenizer=sources.tokenizer if sources else BASE,
        chat_template=sources.chat_template if sources else None,
        vocabulary=recipe.tokenizer,
        statistics={**_statistics_of(recipe, sources), **resolved(statistics)},
    )
    if recipe.calibration:
        return recipe, inputs, sources
    own = calibration_digests(inputs.models.sources)  # of a recipe that was written by hand
    return with_calibration(recipe, own), inputs, sources


def open_inputs(
    specs: Mapping[str, str],
    path: Path,
    weights: str,
    trust: Trust,
    *,
    align: Sequence[str] = (),
    tokenizer: str = BASE,
    chat_template: str | None = None,
    vocabulary: TokenizerConfig | None = None,
    statistics: Mapping[str, str] = MappingProxyType({}),
) -> MergeInputs:
    """Open the models that the file at `path` merges: source name → folder, hub id or recipe.

    The file is taken at its word: a model that looks locked is told of, not refused.

    Raises:
        InputError: a model cannot be used, or they do not fit together.
    """
    specs = adapters_alone(specs)
    config = ModelsConfig(
        base=specs[BASE],
        experts={name: spec for name, spec in specs.items() if name != BASE},
        align=list(align),
        tokenizer=vocabulary,
        statistics=dict(statistics),
        allow_locked=True,
        allow_pickle=trust.pickle,
        trust_remote_code=trust.remote_code,
    )
    try:
        models = check_models(with_recipes_made(config), only_merged=True)
    except ModelNotFoundError as error:
        raise InputError(
            f"{error}\n{path}: if a model lies elsewhere now, say so: "
            f"{' '.join(_option(name) for name in (BASE, *config.experts))}"
        ) from None
    dtype = DtypeConfig.model_validate({"weights": weights})
    return MergeInputs(config, models, dtype, tokenizer, chat_template)


def check_given(
    given: Mapping[str, str], known: Collection[str], path: Path, option: str = "--expert"
) -> None:
    """Refuse `--expert NAME=PATH` for a name that the file at `path` does not have.

    Raises:
        InputError: says which names it has.
    """
    for name in given:
        if name not in known:
            raise InputError(
                f"{option} {name}: {path} has no such source; it has {', '.join(known)}"
            )


def resolved(specs: Mapping[str, str]) -> dict[str, str]:
    """Return the specs with relative folders taken from the current one."""
    return {name: resolve_spec(spec, Path.cwd()) for name, spec in specs.items()}


def _statistics_of(recipe: Recipe, sources: Sources | None) -> dict[str, str]:
    """Where the calibration files lie that the recipe needs; of those that are gone, none."""
    known = resolved(sources.statistics) if sources else {}
    needed = {name: known[name] for name in recipe.calibration if name in known}
    return {name: spec for name, spec in needed.items() if not is_gone(spec)}


def _places(sources: Sources) -> dict[str, str]:
    """Where the models lie; of merges that are gone, the recipe to make them of again."""
    models = resolved(sources.models)
    gone = {n: made for n, made in sources.recipes.items() if not Path(models[n]).exists()}
    return {**models, **{name: _recipe_folder(made) for name, made in gone.items()}}


def _recipe_folder(provenance: Provenance) -> str:
    """A folder in the cache with the two files of a recipe whose own are gone."""
    folder = (
        cache_folder("recipes") / f"{content_digest(provenance.model_dump(mode='json'))}-recipe"
    )
    provenance.write(folder)
    return str(folder)


def _made(name: str, spec: str, trust: Trust) -> str:
    """The folder of a model: its own, or that of the checkpoint made of a recipe."""
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
    """The cached checkpoint of a recipe, written if it is not there yet."""
    beside = path.parent / SOURCES_FILE
    if not beside.is_file():
        raise InputError(
            f"{path}: there is no {SOURCES_FILE} beside it that says where its models lie; merge "
            "it (evomerge merge, with --base and --expert) and give the result"
        )
    sources = load_sources(beside)
    check_trust(sources, beside, trust)
    decisive = {"weights", "tokenizer", "chat_template"}
    key = {
        "recipe": load_recipe(path).digest,
        **sources.model_dump(mode="json", include=decisive),
    }
    folder = cache_folder("recipes") / content_digest(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            recipe, inputs, _ = open_recipe(path, trust=trust)  # makes recipes among its models
            write_merge(recipe, inputs, folder)
    return folder


def _option(name: str) -> str:
    return "--base PATH" if name == BASE else f"--expert {name}=PATH"
