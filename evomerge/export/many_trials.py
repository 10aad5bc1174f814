"""Exports many trials of a run at once: a Pareto front, or an optimizer's archive."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from evomerge.common.errors import InputError
from evomerge.config import SPLITS, CampaignConfig
from evomerge.export.card import front_matter, span, table
from evomerge.export.folder import Format, export_recipe, holds
from evomerge.export.parents import parents_of
from evomerge.export.trial import compare_with_record, inputs_of, measured_of
from evomerge.materialize.disk.checkpoint import checkpoint_size
from evomerge.materialize.disk.provenance import RECIPE_FILE
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.materialize.disk.stream import SHARD_BYTES, check_room
from evomerge.materialize.kernel import Kernel
from evomerge.models.checks.checked_models import CheckedModels, check_models
from evomerge.recipe import Recipe
from evomerge.results.results import Results
from evomerge.search.optimizers import build_optimizer
from evomerge.search.optimizers.replay import members
from evomerge.search.spaces.build import space_of
from evomerge.study.record import Evaluation
from evomerge.study.study import PIECES, Study

_LOGGER = logging.getLogger(__name__)
Kind = Literal["front", "archive"]
INDEX, CARD = "index.json", "README.md"


def export_many(
    config: CampaignConfig,
    study: Study,
    kind: Kind,
    to: Path,
    format: Format = "hf",
    run: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    note: Callable[[str], None] = _LOGGER.info,
    warn: Callable[[str], None] = _LOGGER.warning,
) -> Path:
    """Write a folder for each trial of the front or of the archive, and an index of them.

    Only what was measured on all items is written; the index names the others. Folders that are
    there already, from a call that was stopped, are kept.

    Raises:
        InputError: there is no front or archive, mergekit's files are asked for, the models have
            changed, or `to` cannot be written, for want of room or because something else is there.
    """
    if format == "mergekit":
        raise InputError(f"--{kind} writes checkpoints or recipes; leave out --format mergekit")
    _check_folder(to)
    models = check_models(with_recipes_made(config.models))
    results = Results(study)
    trials = _front(results) if kind == "front" else _archive(config, models, results)
    chosen = [trial for trial in trials if trial.measured]
    summaries = {
        f"trial-{t.number}": results.trial(t.number) for t in chosen if t.number is not None
    }
    recipes = {name: Recipe.from_json(found["recipe"]) for name, found in summaries.items()}
    missing = [
        name for name, recipe in recipes.items() if not _is_written(to / name, recipe, format)
    ]
    to.mkdir(parents=True, exist_ok=True)
    if format == "hf":
        kernel = Kernel(models.sources, config.dtype.weights)
        sizes = (checkpoint_size(recipes[name], models.layout, kernel) for name in missing)
        check_room(to, sum(sizes))
    inputs = inputs_of(config, models, run)
    for name in missing:
        place = to / name
        if format == "recipe":
            place.mkdir(exist_ok=True)
        measured = measured_of(config, results, summaries[name], place)
        export_recipe(recipes[name], inputs, place, format, shard_bytes, measured)
        if format == "hf":
            compare_with_record(results, recipes[name], place, note, warn)
    index = {
        "study": study.name,
        "kind": kind,
        "members": [_row(name, summary) for name, summary in summaries.items()],
        "verdict": results.best()["verdict"],
        "estimated": [trial.number for trial in trials if not trial.measured],
    }
    (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (to / CARD).write_text(_card(to.resolve().name, index, recipes, models), encoding="utf-8")
    return to


def _check_folder(to: Path) -> None:
    """Refuse a folder that holds anything but an export of many trials.

    Raises:
        InputError: names it.
    """
    if to.exists() and not to.is_dir():
        raise InputError(f"{to}: is a file; choose another --to")
    for path in to.iterdir() if to.is_dir() else ():
        if path.name not in (INDEX, CARD) and not path.name.lstrip(".").startswith("trial-"):
            raise InputError(f"{to}: holds {path.name}, which is no part of this; choose another")


def _is_written(place: Path, recipe: Recipe, format: str) -> bool:
    return holds(place, recipe) if format == "hf" else (place / RECIPE_FILE).is_file()


def _front(results: Results) -> list[Evaluation]:
    """The trials of the Pareto front, the preferred first."""
    front = results.best().get("front")
    if front is None:
        raise InputError(
            f"--front: the objective of study {results.study.name!r} has one goal, so that its "
            "front is the winner; leave --front out, or take --archive"
        )
    return [results.evaluation(one["trial"]) for one in front]


def _archive(config: CampaignConfig, models: CheckedModels, results: Results) -> list[Evaluation]:
    """What the optimizer keeps, each recipe once."""
    space = space_of(config, models, results.study.note(PIECES) or {})
    optimizer = build_optimizer(config.optimizer, space, config.seed)
    began = results.study.known_at_start()
    kept = members(optimizer, results.judges["search"], results.evaluations, began)
    found = {trial.digest: trial for trial in kept if not trial.estimated}
    if not found:
        raise InputError(
            f"--archive: {config.optimizer.kind} keeps no archive, or has nothing in it yet; "
            "m2n2, ga, map_elites, nsga2, nsga3, pso and de keep one"
        )
    return list(found.values())


def _row(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    scores = {split: summary["scores"][split] for split in SPLITS if summary["scores"][split]}
    return {
        "folder": name,
        "trial": summary["trial"],
        "digest": summary["digest"],
        "scores": scores,
    }


def _card(
    title: str, index: Mapping[str, Any], recipes: Mapping[str, Recipe], models: CheckedModels
) -> str:
    """The index for people, and for the hub."""
    parents = {p.name: p for recipe in recipes.values() for p in parents_of(recipe, models)}
    rows = {f"[{row['folder']}]({row['folder']})": _cells(row) for row in index["members"]}
    what = "Pareto front" if index["kind"] == "front" else "archive of the optimizer"
    sections = [
        front_matter(title, list(parents.values())),
        f"# {title}",
        f"{len(rows)} merges: the {what} of the search {index['study']!r}. Each folder has a card "
        "of its own. Means of the objective and of its tasks on the splits on which a merge was "
        "measured, with 95 % intervals:",
        table("folder", rows),
    ]
    if index["verdict"]:
        sections.insert(2, index["verdict"]["text"])
    if index["estimated"]:
        listed = ", ".join(map(str, index["estimated"]))
        sections.append(f"Not here, because their scores are estimates: trials {listed}.")
    return "\n\n".join(sections) + "\n"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {}
    for split, found in row["scores"].items():
        cells[split] = span(found, "mean")
        tasks: Mapping[str, Any] = found["tasks"]
        if len(tasks) > 1:
            cells |= {f"{task} ({split})": f"{one['mean']:.3f}" for task, one in tasks.items()}
    return cells
