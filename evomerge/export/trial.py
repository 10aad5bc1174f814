"""Exports one trial of a run: the winner, or the trial with a number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.common.errors import InputError
from evomerge.config import PARAMETERS, CampaignConfig
from evomerge.export.card import TaskScore
from evomerge.export.folder import Format, Measured, export_recipe, holds
from evomerge.export.lm_eval_command import stock_commands
from evomerge.export.weights_check import compare_with_scored, doubt_unrecorded
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.materialize.disk.stream import SHARD_BYTES
from evomerge.models.checks.checked_models import CheckedModels, check_models
from evomerge.recipe import Recipe
from evomerge.results.results import Results
from evomerge.results.verdict_words import verdict_lines
from evomerge.study.run_folder import statistics_folder
from evomerge.study.study import Study

_LOGGER = logging.getLogger(__name__)


def export_trial(
    config: CampaignConfig,
    study: Study,
    trial: int | None,
    to: Path,
    format: Format = "hf",
    run: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    anyway: bool = False,
    note: Callable[[str], None] = _LOGGER.info,
    warn: Callable[[str], None] = _LOGGER.warning,
) -> Path:
    """Write a trial's recipe (the winner's by default) as a checkpoint folder or as one file.

    Args:
        trial: its number; None for what the verdict says: the winner, or the winner of an earlier
            stage that stays the result.
        run: the folder whose statistics of the models the workers used: with them, decompositions
            are those that were scored, to the byte.
        anyway: without `trial`, write the search's best merge, also if it beats no parent.
        note: is told that a checkpoint's weights are those that were scored, or that it is there
            already: a call that was killed at the end had written it whole.
        warn: is told that a checkpoint's weights are not those that were scored, and why.

    Raises:
        InputError: no such trial, no merge beats the parents, the models have changed, or `to`
            cannot be written.
    """
    results = Results(study)
    if trial is None and not anyway:
        trial = _winner_of(results)
    summary = results.best() if trial is None else _summary_of(results, trial)
    recipe = Recipe.from_json(summary["recipe"])
    if format == "hf" and holds(to, recipe):
        note(f"{to}: is there already, this recipe's checkpoint; nothing was written")
        return to
    inputs = inputs_of(config, check_models(with_recipes_made(config.models)), run)
    measured = measured_of(config, results, summary, to)
    written = export_recipe(recipe, inputs, to, format, shard_bytes, measured)
    if format == "hf":
        compare_with_record(results, recipe, written, note, warn)
    return written


def compare_with_record(
    results: Results,
    recipe: Recipe,
    folder: Path,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Tell whether a checkpoint holds the weights that the study scored, as far as it knows them.

    Of finalists it has a record, unless an earlier evomerge scored them. One that is a baseline was
    scored as that.
    """
    roles = ("finalist", "baseline")
    own = [e for e in results.evaluations if e.digest == recipe.digest and e.role in roles]
    recorded = [one.weights for one in own if one.weights is not None]
    if recorded:
        same, text = compare_with_scored(folder, recipe, recorded[-1])
        (note if same else warn)(f"{folder}: {text}")
    elif own and (doubt := doubt_unrecorded(recipe)):
        warn(f"{folder}: {doubt}")


def inputs_of(config: CampaignConfig, models: CheckedModels, run: Path | None) -> MergeInputs:
    """Return the opened models of a campaign, from which its recipes are merged."""
    statistics = statistics_folder(run) if run else None
    return MergeInputs(config.models, models, config.dtype, statistics=statistics)


def measured_of(
    config: CampaignConfig, results: Results, summary: Mapping[str, Any], to: Path
) -> Measured:
    """Return the scores of a trial's table, and the commands that give them on the export."""
    commands = scoring_commands(config, results.study, to)
    return Measured(summary, commands, _task_scores(results, summary))


def _winner_of(results: Results) -> int | None:
    """Return the trial that holds the winner of an earlier stage, if it stays; None: the best.

    Raises:
        InputError: no merge beats the parents; says how to export one all the same.
    """
    found = results.best()
    verdict = found["verdict"]
    stage = verdict["stage"] or {}
    if not verdict["beats"]:
        raise InputError(
            " ".join(verdict_lines(verdict))
            + f" To export trial {found['trial']} all the same: --anyway; another: --trial N"
        )
    return stage.get("trial")


def _summary_of(results: Results, trial: int) -> dict[str, Any]:
    """Return the table of a trial that was measured on all items."""
    if results.evaluation(trial).estimated:
        raise InputError(
            f"--trial {trial}: was pruned at a rung, so that its score is an estimate; "
            "export one that was measured on all items"
        )
    return results.trial(trial)


def _task_scores(results: Results, summary: Mapping[str, Any]) -> list[TaskScore]:
    """Return every task's score on the test split; none where it was not opened for this recipe."""
    if not summary["scores"]["test"]:
        return []
    counts = summary["scores"]["test"]["tasks"]
    datasets = {task["task"]: task.get("dataset") for task in results.task_notes}
    return [
        TaskScore(
            task=name,
            metric=found["metric"],
            documents=counts[name]["n"],
            dataset=datasets[name],
            **found["scores"]["winner", "winner"],
        )
        for name, found in results.tasks(summary).items()
        if found["metric"] != PARAMETERS  # no score of documents
    ]


def scoring_commands(config: CampaignConfig, study: Study, checkpoint: Path) -> list[str]:
    """Return the stock lm_eval commands that give the campaign's scores on an exported folder."""
    compute = study.identity["dtype"]["compute"]
    return stock_commands(config.fitness, str(checkpoint.resolve()), compute)
