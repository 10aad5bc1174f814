"""`evomerge compare`: several optimizers on one campaign, at equal budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.shared import (
    AsJson,
    CampaignFile,
    Override,
    app,
    exit_codes,
    hint,
    load,
    note,
    resumable,
    show,
    stderr,
    waiting,
)
from evomerge.common.errors import InputError
from evomerge.common.extras import has, how_to_install

if TYPE_CHECKING:
    from evomerge.config import CampaignConfig


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
    from evomerge.compare.arms import parse_arms
    from evomerge.workers.isolated import begin_imports

    if config.stages:
        raise InputError("compare takes a campaign of one search; this one has stages")
    arms = parse_arms(optimizers, config.optimizer)
    begin_imports(config)
    with waiting("loading libraries"):
        from evomerge.campaign.setup import prepare
        from evomerge.compare.page import comparison_table, write_comparison
        from evomerge.compare.runs import compare_optimizers
        from evomerge.python.progress import ProgressDisplay
    with waiting("opening models and tasks"):
        setup = prepare(config)
    for text in setup.models.notes:
        note(text)
    with ProgressDisplay(stderr) as display:
        comparison = compare_optimizers(setup, arms, seeds, folder, display)
    written = write_comparison(comparison, folder)
    show(comparison, as_json, comparison_table)
    for path in written:
        hint(path)
    if not has("matplotlib"):
        note(f"without matplotlib there is no compare.png; {how_to_install('compare')}")
