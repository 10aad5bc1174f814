"""The driver: a campaign opened over its folder, with workers and a study behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from evomerge.campaign import Campaign
from evomerge.config import CampaignConfig
from evomerge.errors import InputError
from evomerge.export.command import stock_commands
from evomerge.export.folder import Format, Origin, export_recipe, holds
from evomerge.export.metadata import TaskScore
from evomerge.export.recipes import with_recipes_made
from evomerge.listener import Listener
from evomerge.materialize.store import tidy
from evomerge.materialize.stream import SHARD_BYTES
from evomerge.models.opening import alignments_of
from evomerge.models.preflight import Preflight, preflight
from evomerge.models.verify import keep_digests
from evomerge.recipe import Recipe
from evomerge.report.summary import best_summary, task_summary, trial_summary
from evomerge.runs import (
    check_folder,
    remember_campaign,
    shown_campaign,
    statistics_folder,
    study_place,
)
from evomerge.search.distributions import distribution
from evomerge.setup import Setup
from evomerge.study.access import Patience
from evomerge.study.record import Evaluation
from evomerge.study.study import Study
from evomerge.tracking import tracked
from evomerge.workers.devices import threads_per_worker
from evomerge.workers.executor import Executor, build_executor
from evomerge.workers.worker import WorkerSpec


@contextmanager
def open_campaign(
    setup: Setup,
    folder: Path,
    listener: Listener,
    elsewhere: Mapping[tuple[str, str], Evaluation] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Iterator[Campaign]:
    """Take the study's lock, build trackers and workers, and hand out the campaign, ready to run.

    Args:
        elsewhere: what other studies know; see `Campaign`.
        notes: small facts for the study to keep.

    Raises:
        InputError: the folder cannot be written, the study belongs to another campaign or is being
            run by another driver, or a worker cannot load models or tasks.
    """
    with (
        open_study(setup, folder, listener, notes) as study,
        tracked(setup.config, study, folder, listener) as told,
        closing(open_workers(setup, folder, study.note("engine"))) as executor,
    ):
        yield Campaign(setup, study, executor, told, elsewhere)


@contextmanager
def open_study(
    setup: Setup, folder: Path, listener: Listener, notes: Mapping[str, Any] | None = None
) -> Iterator[Study]:
    """Take the lock of the study of a run's folder, made if there is none; `notes` go into it.

    `listener` is told when the study's database is away, and when it is back.

    Raises:
        InputError: the folder cannot be written, or the study belongs to another campaign or is
            being run by another driver.
    """
    config, space = setup.config, setup.space
    check_folder(config, folder)
    space.keep_in(folder)
    storage, name = study_place(config, folder)
    study = Study.create_or_resume(
        storage,
        name,
        identity=setup.identity,
        campaign=shown_campaign(config),
        genes={gene.name: distribution(gene) for gene in space.genes},
        patience=Patience(60 * config.study.wait_minutes, listener.said),
    )
    with study:
        study.set_items(setup.items)
        remember_campaign(config, folder)
        tasks = [
            {
                "task": task.task,
                "metric": task.metric,
                "weight": task.weight,
                "higher_is_better": task.higher_is_better,
                "dataset": task.dataset,
                "test_set": task.test_set,
            }
            for task in setup.tasks
        ]
        for key, note in {"tasks": tasks, **(notes or {})}.items():
            study.set_note(key, note)
        yield study


def open_workers(setup: Setup, folder: Path, facts: Mapping[str, int] | None = None) -> Executor:
    """Workers for the campaign's models and items; they know nothing of its optimizer.

    They keep the models' statistics in the run's folder. `facts` are what engines found out about
    themselves in earlier runs: with them, batches are the same again.

    Raises:
        InputError: a worker cannot load models or tasks.
    """
    config, kept = setup.config, statistics_folder(folder)
    digests = {name: source.digest for name, source in setup.models.sources.items()}
    tidy(kept)
    if config.workers.on_ray:
        keep_digests(setup.models.sources, kept)
    known = alignments_of(setup.models.sources)
    made = config.model_copy(update={"models": with_recipes_made(config.models)})
    threads = threads_per_worker(config)
    return build_executor(WorkerSpec(made, setup.items, threads, known, kept, digests, facts or {}))


def export_trial(
    config: CampaignConfig,
    study: Study,
    trial: int | None,
    to: Path,
    format: Format = "hf",
    run: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    again: bool = False,
) -> Path:
    """Write a trial's recipe (the winner's by default) as a checkpoint folder or as one file.

    Args:
        run: the folder whose statistics of the models the workers used: with them, decompositions
            are those that were scored, to the byte.
        again: a folder that is the recipe's checkpoint already will do.

    Raises:
        InputError: no such trial, the models have changed, or `to` cannot be written.
    """
    summary = best_summary(study) if trial is None else _summary_of(study, trial)
    recipe = Recipe.from_json(summary["recipe"])
    if again and holds(to, recipe):
        return to
    models = preflight(with_recipes_made(config.models))
    origin = origin_of(config, study, models, summary, to, run)
    return export_recipe(recipe, origin, to, format, shard_bytes)


def origin_of(
    config: CampaignConfig,
    study: Study,
    models: Preflight,
    summary: Mapping[str, Any],
    to: Path,
    run: Path | None,
) -> Origin:
    """Where the recipe of a summary comes from; it will be written to `to`."""
    return Origin(
        config=config.models,
        models=models,
        dtype=config.dtype,
        summary=summary,
        commands=scoring_commands(config, study, to),
        scores=_task_scores(study, summary),
        statistics=statistics_folder(run) if run else None,
    )


def _summary_of(study: Study, trial: int) -> dict[str, Any]:
    by_number = {e.number: e for e in study.evaluations()}
    if trial not in by_number:
        raise InputError(f"--trial {trial}: study {study.name!r} has no such trial")
    if by_number[trial].estimated:
        raise InputError(
            f"--trial {trial}: was stopped on a rung, so that its score is an estimate; "
            "export one that was measured on all items"
        )
    return trial_summary(study, by_number[trial])


def _task_scores(study: Study, summary: Mapping[str, Any]) -> list[TaskScore]:
    """Every task on the test split; none where it was not opened for this recipe."""
    if not summary["scores"]["test"]:
        return []
    counts = summary["scores"]["test"]["tasks"]
    datasets = {task["task"]: task.get("dataset") for task in study.note("tasks") or []}
    return [
        TaskScore(
            task=name,
            metric=found["metric"],
            documents=counts[name]["n"],
            dataset=datasets[name],
            **found["scores"]["winner", "winner"],
        )
        for name, found in task_summary(study, summary).items()
    ]


def scoring_commands(config: CampaignConfig, study: Study, checkpoint: Path) -> list[str]:
    """The stock lm_eval commands that give the campaign's own scores on an exported folder."""
    compute = study.identity["dtype"]["compute"]
    return stock_commands(config.fitness, str(checkpoint.resolve()), compute)
