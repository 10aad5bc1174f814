"""`evomerge check`: what would fail in a campaign, and what it will take, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.shared import (
    CampaignFile,
    Override,
    RunOut,
    app,
    exit_codes,
    load,
    say,
    stdout,
    waiting,
)
from evomerge.common.errors import InputError


@app.command()
def check(
    campaign: CampaignFile,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Try one candidate, for memory and seconds."),
    ] = True,
    out: RunOut = None,
    overrides: Override = None,
) -> None:
    """Check a campaign before its first candidate: what would fail, and what it will take.

    Where no model has its weights here, their configs are enough.
    """
    with exit_codes():
        config = load(campaign, overrides or [])
        run = out or Path("runs") / config.name
        with waiting("loading libraries, models and tasks"):
            from evomerge.campaign.defaults import with_defaults
            from evomerge.campaign.setup import prepare
            from evomerge.campaign.stages import check_later, stages_of
            from evomerge.preflight.estimate_calibration import calibration_estimates
            from evomerge.preflight.forecast import foresee
            from evomerge.preflight.probe import probe
            from evomerge.preflight.problems import problems
            from evomerge.preflight.show import preflight_table

            for estimate in calibration_estimates(config):  # before its lack is refused
                say(f"calibration of {estimate.name}: {estimate}")
            stages = stages_of(config, run)
            own = stages[0].folder
            setup = with_defaults(prepare(stages[0].config, own, unread=True), own)
            searches = check_later(setup, stages)
        trials = sum(stage.config.budget.trials for stage in stages)
        with waiting("trying one candidate" if measure else "adding up"):
            forecast = foresee(setup, run, trials, probe if measure else None)
        stdout.print(preflight_table(setup, forecast, searches))
        if found := list(problems(setup, forecast, run, searches)):
            raise InputError("\n".join(found))
