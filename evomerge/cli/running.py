"""Commands that run a campaign, or look ahead: search, compare, check, quickstart."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.shared import (
    AsJson,
    CampaignFile,
    Override,
    app,
    exit_codes,
    load,
    resumable,
    show,
    stderr,
    stdout,
)
from evomerge.common.errors import InputError

if TYPE_CHECKING:
    from evomerge.campaign.stages import Stage
    from evomerge.config import CampaignConfig


@app.command()
def search(
    campaign: CampaignFile,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/<name>")
    ] = None,
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
    started = time.monotonic()
    flags = {
        "budget.trials": trials,
        "budget.hours": hours,
        "workers.count": workers,
        "seed": seed,
    }
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    with exit_codes():
        config = load(campaign, [*(overrides or []), *given])
        folder = out or Path("runs") / config.name
        deadline = _deadline(started, config, until)
        with resumable():
            _search(config, folder, deadline)


def _search(config: CampaignConfig, folder: Path, deadline: float | None) -> None:
    from evomerge.campaign.stages import stages_of
    from evomerge.report.tables import best_table
    from evomerge.results.results import Results
    from evomerge.study.run_folder import check_folder, open_run

    check_folder(config, folder)
    for place in range(max(1, len(config.stages))):
        stages = stages_of(config, folder)  # anew: one stage's winner is a model of the next
        if stages[place].done:
            continue
        if not _run_stage(stages[place:], folder, config, deadline):
            raise KeyboardInterrupt
    _, study = open_run(folder)
    with study:
        stdout.print(best_table(Results(study).best()))
    stderr.print(f"export the winner: evomerge export {folder} --to DIR", highlight=False)


def _run_stage(
    stages: list[Stage], folder: Path, config: CampaignConfig, deadline: float | None
) -> bool:
    """Run the first of the stages that are left; whether the next may begin."""
    from evomerge.cli.progress import ProgressDisplay
    from evomerge.study.run_folder import remember_campaign

    with stderr.status("opening models and tasks"):
        from evomerge.campaign.setup import prepare
        from evomerge.campaign.stages import check_later, run_stage

        setup = prepare(stages[0].config)
        check_later(setup, stages)
    for note in setup.models.notes:
        stderr.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if config.stages:
        remember_campaign(config, folder)
    with ProgressDisplay(stderr) as display:
        if stages[0].name:
            display.begin(stages[0].title)
        return run_stage(stages[0], setup, display, deadline)


@app.command()
def compare(
    campaign: CampaignFile,
    optimizers: Annotated[
        str,
        typer.Option(
            metavar="A,B,…",
            help="Names (`evomerge list optimizers`), each with options or without: "
            "'cma,cma:{screen: 4},cma:{fitness.rungs: [32, all]}'. A name without options that is "
            "the campaign's own optimizer has the campaign's.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each optimizer; the first has the campaign's seed.")
    ] = 5,
    out: Annotated[
        Path | None,
        typer.Option(help="The comparison's folder.", show_default="runs/<name>-compare"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Of each run.", show_default="the campaign's")
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(
            min=1, help="Search items of each run, instead of trials.", show_default=False
        ),
    ] = None,
    overrides: Override = None,
    as_json: AsJson = False,
) -> None:
    """Compare optimizers on a campaign: equal item evaluations, several seeds.

    Each optimizer and seed is a run of its own in OUT/<optimizer>/seed-<n>. Whatever was the best
    by search at some time is scored on select in hindsight; the test split stays shut. Writes
    compare.html, compare.png and compare.json into OUT. Stopped, the same command goes on; with
    more trials, seeds or optimizers it adds what is missing.
    """
    given = [] if trials is None else [f"budget.trials={trials}"]
    if items is not None:
        given = [f"budget={{items: {items}{'' if trials is None else f', trials: {trials}'}}}"]
    with exit_codes(), resumable():
        config = load(campaign, [*(overrides or []), *given])
        _compare(config, optimizers, seeds, out or Path("runs") / f"{config.name}-compare", as_json)


def _compare(
    config: CampaignConfig, optimizers: str, seeds: int, folder: Path, as_json: bool
) -> None:
    from evomerge.cli.progress import ProgressDisplay
    from evomerge.compare.arms import parse_arms

    if config.stages:
        raise InputError("compare takes a campaign of one search; this one has stages")
    arms = parse_arms(optimizers, config.optimizer)
    with stderr.status("opening models and tasks"):
        from evomerge.campaign.setup import prepare

        setup = prepare(config)
    from evomerge.compare.page import comparison_table, write_comparison
    from evomerge.compare.runs import compare_optimizers

    with ProgressDisplay(stderr) as display:
        comparison = compare_optimizers(setup, arms, seeds, folder, display)
    written = write_comparison(comparison, folder)
    show(comparison, as_json, comparison_table)
    for path in written:
        stderr.print(f"{path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    campaign: CampaignFile,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Try one candidate, for memory and seconds."),
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/<name>")
    ] = None,
    overrides: Override = None,
) -> None:
    """Check a campaign before its first candidate: what would fail, and what it will take.

    Where no model has its weights here, their configs are enough.
    """
    with exit_codes():
        config = load(campaign, overrides or [])
        from evomerge.campaign.setup import prepare
        from evomerge.campaign.stages import check_later, stages_of
        from evomerge.preflight.forecast import foresee
        from evomerge.preflight.probe import probe
        from evomerge.preflight.problems import problems
        from evomerge.preflight.show import preflight_table

        run = out or Path("runs") / config.name
        with stderr.status("opening models and tasks"):
            stages = stages_of(config, run)
            setup = prepare(stages[0].config, unread=True)
            check_later(setup, stages)
        trials = sum(stage.config.budget.trials for stage in stages)
        with stderr.status("trying one candidate" if measure else "adding up"):
            forecast = foresee(setup, run, trials, probe if measure else None)
        stdout.print(preflight_table(setup, forecast))
        if found := list(problems(setup, forecast, run)):
            raise InputError("\n".join(found))


@app.command()
def quickstart(
    to: Annotated[Path, typer.Option("--to", help="A new folder for the files.")],
) -> None:
    """Copy small models, tasks and a campaign to play with."""
    from evomerge.cli.quickstart import copy_quickstart

    with exit_codes():
        campaign = copy_quickstart(to)
        stdout.print(f"{campaign}", markup=False, highlight=False, soft_wrap=True)
        stderr.print(f"run it: evomerge search {campaign}", markup=False, highlight=False)


def _deadline(started: float, config: CampaignConfig, until: str | None) -> float | None:
    """When to stop asking, on the monotonic clock: the earlier of `budget.hours` and `--until`."""
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
