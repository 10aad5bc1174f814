"""Open a campaign over its folder: study, trackers and workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from evomerge.campaign.listener import Listener
from evomerge.campaign.loop import Campaign
from evomerge.campaign.notify_trackers import tracked
from evomerge.campaign.setup import Setup
from evomerge.campaign.snapshots import FILE
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.materialize.statistics.store import tidy
from evomerge.models.checks.digests import digests_of, keep_digests
from evomerge.models.open_models import alignments_of
from evomerge.search.spaces.genes import distribution
from evomerge.study.access import OutagePolicy
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import (
    check_folder,
    remember_campaign,
    shown_campaign,
    statistics_folder,
    study_place,
)
from evomerge.study.study import BY_DEFAULT, PIECES, Study
from evomerge.workers.build import build_executor
from evomerge.workers.devices import threads_per_worker
from evomerge.workers.job import Executor
from evomerge.workers.worker import WorkerSpec


@contextmanager
def open_campaign(
    setup: Setup,
    folder: Path,
    listener: Listener,
    elsewhere: Mapping[tuple[str, str], Evaluation] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Iterator[Campaign]:
    """Take the study's lock, begin trackers and workers, and yield the campaign, ready to run.

    Args:
        folder: the run's.
        listener: is told what happens.
        elsewhere: (digest, split) → evaluation of other studies; copied, not measured again.
        notes: small facts for the study to keep.

    Raises:
        InputError: the folder cannot be written, the study belongs to another campaign or is being
            run by another driver, or a worker cannot load models or tasks.
    """
    with (
        open_study(setup, folder, listener, notes) as study,
        tracked(setup.trackers, study, folder, listener) as told,
        closing(start_workers(setup, folder, told, study.note("engine"))) as executor,
    ):
        yield Campaign(setup, study, executor, told, elsewhere, folder / FILE)


def start_workers(
    setup: Setup, folder: Path, listener: Listener, facts: Mapping[str, int] | None = None
) -> Executor:
    """Start workers as `open_workers`, and say so before where that takes a while."""
    workers = setup.config.workers
    if workers.on_ray:
        where = f"at {workers.address}" if workers.address else "on this machine"
        listener.said(f"starting Ray {where}, and workers, which load models and tasks")
    return open_workers(setup, folder, facts)


@contextmanager
def open_study(
    setup: Setup, folder: Path, listener: Listener, notes: Mapping[str, Any] | None = None
) -> Iterator[Study]:
    """Take the lock of a run's study, which is made if there is none, and yield it.

    Args:
        folder: the run's.
        listener: is told when the study's database is away, and when it is back.
        notes: small facts for the study to keep.

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
        outages=OutagePolicy(60 * config.study.wait_minutes, listener.said),
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
                **({"aggregate": task.aggregate} if task.corpus else {}),
                **({"agreement": task.teacher} if task.teacher else {}),
                **({"composed_of": list(task.composed_of)} if task.composed_of else {}),
            }
            for task in setup.tasks
        ]
        audit = [
            {"task": task.task, "metric": task.metric, "higher_is_better": task.higher_is_better}
            for task in setup.audit
        ]
        told = {"tasks": tasks, **({"audit": audit} if audit else {}), **(notes or {})}
        if setup.by_default:
            told[BY_DEFAULT] = dict(setup.by_default)
        if setup.pieces:
            told[PIECES] = dict(setup.pieces)
        for key, note in told.items():
            study.set_note(key, note)
        yield study


def open_workers(setup: Setup, folder: Path, facts: Mapping[str, int] | None = None) -> Executor:
    """Start workers for the campaign's models and items; they know nothing of its optimizer.

    They keep the models' statistics in the run's folder.

    Args:
        folder: the run's.
        facts: recorded by engines in earlier runs (a batch size); with them, batches are the same.

    Raises:
        InputError: a worker cannot load models or tasks.
    """
    config, kept = setup.config, statistics_folder(folder)
    digests = digests_of(setup.models.sources)
    tidy(kept)
    if config.workers.on_ray:
        keep_digests(setup.models.sources, kept)
    known = alignments_of(setup.models.sources)
    made = config.model_copy(update={"models": with_recipes_made(config.models)})
    threads = threads_per_worker(config)
    files = setup.models.files
    return build_executor(
        WorkerSpec(
            made,
            setup.measured_items,
            threads,
            known,
            kept,
            digests,
            facts or {},
            files,
            teachers=setup.teachers,
        )
    )
