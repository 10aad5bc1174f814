"""`evomerge search`: run a campaign, or go on with what its folder already holds."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.shared import (
    CampaignFile,
    Override,
    RunOut,
    app,
    exit_codes,
    hint,
    load,
    note,
    resumable,
    stderr,
    stdout,
    waiting,
)
from evomerge.common.errors import InputError

if TYPE_CHECKING:
    from evomerge.config import CampaignConfig


@app.command()
def search(
    campaign: CampaignFile,
    out: RunOut = None,
    trials: Annotated[int | None, typer.Option(min=1, help="The study's total.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="This run's wall time.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="Stop asking at this time of day.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of workers.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search and of masks.")] = None,
    overrides: Override = None,
) -> None:
    """Run a campaign, or go on with what its folder already holds."""
    from evomerge.config import as_overrides

    started = time.monotonic()
    given = as_overrides(trials=trials, hours=hours, workers=workers, seed=seed)
    with exit_codes():
        config = load(campaign, [*(overrides or []), *given])
        folder = out or Path("runs") / config.name
        deadline = _deadline(started, config, until)
        with resumable():
            _search(config, folder, deadline)


def _search(config: CampaignConfig, folder: Path, deadline: float | None) -> None:
    """Run the stages that are left, one after the other, and print the verdict."""
    from evomerge.workers.isolated import begin_imports

    begin_imports(config)
    with waiting("loading libraries"):
        from evomerge.python.search import run_stages
        from evomerge.report.tables import best_table, export_hint
        from evomerge.results import Results
        from evomerge.study.run_folder import open_run

    if not run_stages(config, folder, stderr, deadline, note, waiting):
        raise KeyboardInterrupt
    _, study = open_run(folder)
    with study:
        best = Results(study).best()
    stdout.print(best_table(best))
    hint(export_hint(best, str(folder)))


def _deadline(started: float, config: CampaignConfig, until: str | None) -> float | None:
    """The moment to stop asking, on the monotonic clock: the earlier of `budget.hours`, `--until`.

    Raises:
        InputError: `--until` is no time of day.
    """
    limits = []
    if config.budget.hours is not None:
        limits.append(started + 3600 * config.budget.hours)
    if until is not None:
        now = datetime.now()
        try:
            clock = datetime.strptime(until, "%H:%M").time()
        except ValueError:
            raise InputError(f"--until {until}: write a time of day as HH:MM") from None
        end = datetime.combine(now.date(), clock)
        if end <= now:
            end += timedelta(days=1)
        limits.append(started + (end - now).total_seconds())
    return min(limits, default=None)
