"""Initial points: the genomes that the campaign file's `initial` names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.campaign.priors import prior_point
from evomerge.common.errors import InputError
from evomerge.config import (
    BestTrials,
    CampaignConfig,
    DescentConfig,
    GradientStart,
    PointStart,
    PriorStart,
    Start,
    StudyTrials,
    resolve_spec,
)
from evomerge.fitness.engines import check_gradients
from evomerge.fitness.tasks.surrogate_losses import check_losses
from evomerge.materialize.gradients import check_differentiable, differentiable_in
from evomerge.mergekit import load_mergekit
from evomerge.methods import find_method
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.recipe import BASE, Merge, Recipe
from evomerge.recipe.recipe import load_recipe
from evomerge.search.spaces.genes import Gene, Genome, Value
from evomerge.search.spaces.space import Space
from evomerge.study.best_trials import best_own_params, best_params
from evomerge.study.record import Descend
from evomerge.study.run_folder import open_run
from evomerge.study.storage_url import describe

BEST_PARENT = "best_parent"
"""The origin of a descent that is the best of the parents on search."""
BEST_KNOWN = "best_known"
"""The origin of a descent that is the best of parents, default merges and grid on search."""
_TRIED = 8
"""Random genomes among which one must have a gradient, where a descent may begin anywhere."""


def initial_points(config: CampaignConfig, space: Space, models: CheckedModels) -> list[Genome]:
    """Return the genomes of `initial` to try first, in the file's order, equal ones once.

    Raises:
        InputError: a name that is no model of the space, a recipe or mergekit file that is no point
            of it, a run or study without trials or with no gene in common; names the entry.
    """
    found: dict[bytes, Genome] = {}
    for index, start in enumerate(config.initial):
        where = f"initial[{index}]"
        try:
            for genome in _genomes(start, config, space, models):
                found.setdefault(genome.tobytes(), genome)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return list(found.values())


def descents_of(initial: Sequence[Start]) -> dict[str, DescentConfig]:
    """The gradient descents of `initial`, by their place in the campaign file."""
    return {
        f"initial[{index}].gradient": start.gradient
        for index, start in enumerate(initial)
        if isinstance(start, GradientStart)
    }


def check_descents(
    config: CampaignConfig,
    space: Space,
    kinds: Mapping[str, str],
    unanswered: Sequence[str],
    proposed: Descend | None,
) -> None:
    """Refuse gradient descents that cannot work here, before any model is built.

    Args:
        config: the campaign.
        space: whose genomes descend.
        kinds: task → lm-eval's output type.
        unanswered: what is wrong with each search document that has no right answer.
        proposed: the longest descent that the optimizer's proposals ask for, if they do.

    Raises:
        InputError: an engine, a task, a method or a space without gradients, or no such origin;
            begins with the key.
    """
    for where, descent in descents_of(config.initial).items():
        _check_smooth(config, kinds, unanswered, where)
        best = {BEST_PARENT: [*space.seeds], BEST_KNOWN: ["uniform", *space.seeds]}
        for name in best.get(descent.origin, [descent.origin]):
            at = descent.model_copy(update={"origin": name})
            _check_genes(config, space, [origin_of(at, space, where, {})[1]], where)
        if descent.sets and not any(gene.name.startswith("use.") for gene in space.genes):
            raise InputError(
                f"{where}.sets: no expert can be left out here; write "
                "space.weights.choose_experts: true, or leave sets out"
            )
    if proposed is not None:
        where = f"optimizer.{'gradient' if 'gradient' in config.optimizer.options else 'kind'}"
        _check_smooth(config, kinds, unanswered, where)
        _check_genes(config, space, _anywhere(config, space), where)
        if proposed.rule == "frank_wolfe" and space.vertices() is None:
            raise InputError(
                f"{where}: frank_wolfe steps towards single experts, whose weights must be genes; "
                "search space.weights.genes.weight, or use gradient"
            )


def check_polish(
    config: CampaignConfig,
    space: Space,
    kinds: Mapping[str, str],
    unanswered: Sequence[str],
    goals: int,
) -> None:
    """Refuse a polish that cannot work here, before any model is built.

    Args:
        config: of the campaign.
        space: that is searched.
        kinds: task → lm-eval's output type.
        unanswered: what is wrong with each search document that has no right answer.
        goals: number of the objective's.

    Raises:
        InputError: several goals, or an engine, a task, a method or a space without gradients;
            begins with the key.
    """
    if config.polish is None:
        return
    if goals > 1:
        raise InputError(
            f"polish: a gradient follows one loss, and the objective has {goals} goals; leave "
            "polish out, or give an objective of one value (fitness.objective)"
        )
    _check_smooth(config, kinds, unanswered, "polish")
    _check_genes(config, space, _anywhere(config, space), "polish")


def _anywhere(config: CampaignConfig, space: Space) -> list[Genome]:
    """Genomes where a descent may begin: at one of them a gene must have a gradient."""
    rng = np.random.default_rng(config.seed & 0xFFFFFFFF)
    return [space.initial, *space.seeds.values(), *rng.random((_TRIED, space.dimension))]


def _check_smooth(
    config: CampaignConfig, kinds: Mapping[str, str], unanswered: Sequence[str], where: str
) -> None:
    """Refuse an engine, tasks, documents or methods without gradients."""
    check_gradients(config, where)
    check_losses(kinds, where, config.fitness.surrogate_loss, unanswered)
    if config.space.weights is None:
        what = "a path" if config.space.mixture is None else "a number of experts"
        raise InputError(f"{where}: {what} has no gradient; search weights as well")
    check_differentiable(config.space.weights.methods, where)


def _check_genes(
    config: CampaignConfig, space: Space, genomes: Sequence[Genome], where: str
) -> None:
    """Refuse genomes of which none has a gene with a gradient."""
    for genome in genomes:
        ones = dict.fromkeys(differentiable_in(space.decode(genome)), 1.0)
        if space.pull_back(genome, ones).any():
            return
    methods = config.space.weights.methods if config.space.weights else ()
    searched = ", ".join(find_method(m, where).name for m in methods)
    raise InputError(
        f"{where}: no gene has a gradient; search weights, lambda or what else {searched} is "
        "smooth in"
    )


def origin_of(
    descent: DescentConfig, space: Space, where: str, scored: Mapping[str, Genome]
) -> tuple[str, Genome]:
    """The name of the point where a descent begins, and its genome.

    Args:
        descent: names its origin.
        space: holds parents.
        where: the descent's key.
        scored: name → genome of parents and default merges by search, the best first.

    Raises:
        InputError: no such point; names those there are.
    """
    known = {"uniform": space.initial, **space.seeds}
    if descent.origin == BEST_KNOWN:
        return next(iter(scored.items()), ("uniform", space.initial))
    held = [name for name in scored if name in space.seeds]
    name = held[0] if descent.origin == BEST_PARENT and held else descent.origin
    if name not in known:
        best = [BEST_PARENT, BEST_KNOWN] if space.seeds else [BEST_KNOWN]
        raise InputError(
            f"{where}.from: {name!r} is no point of this space; write one of "
            f"{', '.join([*known, *best])}"
        )
    return name, known[name]


def _genomes(
    start: Start, config: CampaignConfig, space: Space, models: CheckedModels
) -> Iterator[Genome]:
    if isinstance(start, GradientStart):
        return  # it has an end only when it was run
    if isinstance(start, PriorStart):
        yield prior_point(start, config.space.weights, space, models)
    elif isinstance(start, PointStart):
        yield _given(start, space)
    elif isinstance(start, BestTrials):
        yield from _by_name(_best_of_run(start), space, start.run)
    elif isinstance(start, StudyTrials):
        found = best_params(start.study, start.name, start.trials)
        yield from _by_name(found, space, describe(start.study))
    elif start == "uniform":
        yield space.initial
    elif start.endswith(".json"):
        yield space.encode(load_recipe(Path(start)))
    elif start.endswith((".yaml", ".yml")):
        yield space.encode(_mergekit_recipe(Path(start), models))
    elif start in space.seeds:
        yield space.seeds[start]
    else:
        files = "a recipe file (….json)", "a mergekit file (….yaml)"
        sections = "{genes: {…}}", "{run: FOLDER}", "{study: URL}", "{prior: NAME}"
        known = ", ".join(["uniform", *space.seeds, *files, *sections])
        raise InputError(f"{start!r} is no point of this space; write one of {known}")


def _given(start: PointStart, space: Space) -> Genome:
    """Return the genome of the values that the campaign file says; of several, the last counts.

    Raises:
        InputError: no gene begins so, or a value is none of its; names the key.
    """
    params: dict[str, Value] = {}
    for key, value in start.genes.items():
        meant = [g for g in space.genes if g.name == key or g.name.startswith(f"{key}.")]
        if not meant:
            names = dict.fromkeys(gene.name.partition(".")[0] for gene in space.genes)
            raise InputError(
                f"genes.{key}: no gene is called so or begins so; they begin with "
                f"{', '.join(names)} (a method's own with METHOD.PARAMETER)"
            )
        for gene in meant:
            if gene.kind != "categorical" and not gene.low <= float(value) <= gene.high:
                raise InputError(
                    f"genes.{key}: {value} is outside of {gene.name}'s bounds, {gene.low:g} to "
                    f"{gene.high:g}; give a value within, or widen space.weights.genes"
                )
            params[gene.name] = _natural(gene, value, "genes")
    return space.genome_of(params)


def _best_of_run(start: BestTrials) -> list[Mapping[str, Any]]:
    _, study = open_run(Path(start.run))
    with study:
        top = best_own_params(study, start.trials)
    if not top:
        raise InputError(f"{start.run}: the run has no trial that succeeded")
    return top


def _by_name(trials: Iterable[Mapping[str, Any]], space: Space, where: str) -> Iterator[Genome]:
    """Convert other searches' params to genomes, gene by gene, by name.

    Params that name no gene are passed over; genes without a param are as in the space's initial
    point; numbers out of a gene's bounds go to the nearest.

    Raises:
        InputError: no param names a gene.
    """
    genes = {gene.name: gene for gene in space.genes}
    for params in trials:
        common = {name: value for name, value in params.items() if name in genes}
        if not common:
            theirs = ", ".join(sorted(params)[:3]) or "none"
            raise InputError(
                f"{where}: its params ({theirs}, …) have no name in common with this space's genes "
                f"({', '.join(sorted(genes)[:3])}, …)"
            )
        taken = {name: _natural(genes[name], value, where) for name, value in common.items()}
        yield space.genome_of(taken)


def _natural(gene: Gene, value: Any, where: str) -> Value:
    """Convert another search's value to one of the gene's.

    Raises:
        InputError: a choice that the gene has not, or no number where it needs one.
    """
    if gene.kind == "categorical":
        if value not in gene.choices:
            choices = ", ".join(map(str, gene.choices))
            raise InputError(f"{where}: {gene.name} is {value!r} there; here it is of {choices}")
        return gene.choices[gene.choices.index(value)]
    if not isinstance(value, int | float):
        raise InputError(f"{where}: {gene.name} is {value!r} there; here it is a number")
    return round(value) if gene.kind == "int" else float(value)


def _mergekit_recipe(path: Path, models: CheckedModels) -> Recipe:
    """Read a mergekit file as a recipe in the campaign's names, without its dtype and tokenizer.

    Raises:
        InputError: the file cannot be read, its models are not the campaign's, or it takes task
            vectors against another base.
    """
    merge = load_mergekit(path)
    names = _campaign_names(merge.models, path, models)
    recipe = merge.recipe(models.layout, dict.fromkeys(merge.models, ""))
    methods = {m.method for m in recipe.merges}
    if names[BASE] != BASE and methods != {"linear"}:
        raise InputError(
            f"{path}: its base is {merge.models[BASE]}, which is {names[BASE]!r} of the campaign; "
            f"{' and '.join(sorted(methods or {'copies'}))} would be about other differences than "
            f"this space's, which are to {models.sources[BASE].spec}"
        )
    return Recipe(
        sources={name: source.digest for name, source in models.sources.items()},
        path=tuple(
            slot if slot.source == BASE else slot.model_copy(update={"source": names[slot.source]})
            for slot in recipe.path
        ),
        merges=tuple(_renamed(merge, names) for merge in recipe.merges),
        tokenizer=models.tokenizer,
    )


def _renamed(merge: Merge, names: Mapping[str, str]) -> Merge:
    """Rename a merge's models; in a linear merge the file's base may be one of our experts."""
    experts = {names[name]: values for name, values in merge.experts.items()}
    parameters = dict(merge.parameters)
    if names[BASE] != BASE:
        experts[names[BASE]] = {"weight": float(parameters["base_weight"])}
        parameters["base_weight"] = experts.pop(BASE, {"weight": 0.0})["weight"]
    return merge.model_copy(update={"experts": experts, "parameters": parameters})


def _campaign_names(theirs: Mapping[str, str], path: Path, models: CheckedModels) -> dict[str, str]:
    """Map a mergekit file's names to the campaign's, by the folders or hub ids that both name.

    Relative paths are taken from the file's folder, else from the current one.
    """
    found: dict[str, str] = {}
    for name, spec in theirs.items():
        wanted = {spec, *(resolve_spec(spec, folder) for folder in (path.parent, Path.cwd()))}
        same = [
            ours
            for ours, source in models.sources.items()
            if wanted & {source.spec, str(source.folder.resolve()), _unrevised(source.spec)}
        ]
        if same:
            found[name] = same[0]
    if lacking := [spec for name, spec in theirs.items() if name not in found]:
        has = ", ".join(f"{name} ({source.spec})" for name, source in models.sources.items())
        raise InputError(
            f"{path}: merges {', '.join(lacking)}, which the campaign has not; its models are {has}"
        )
    if len(set(found.values())) < len(found):
        raise InputError(f"{path}: names one model of the campaign in two ways; name it once")
    return found


def _unrevised(spec: str) -> str:
    """Return a hub id without its revision; a path as it is."""
    return spec if Path(spec).is_absolute() else spec.partition("@")[0]
