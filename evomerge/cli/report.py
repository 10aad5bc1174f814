"""`evomerge report`: a campaign as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.shared import RunFolder, app, exit_codes, say


@app.command()
def report(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page's file.", show_default="DIR/report.html")
    ] = None,
    to_optuna_dashboard: Annotated[
        bool,
        typer.Option(
            "--to-optuna-dashboard",
            help="Instead of the page, save its figures in the study, where optuna-dashboard shows "
            "them.",
        ),
    ] = False,
) -> None:
    """Write the campaign as one HTML page: scores, search, population, recipe, cost, facts."""
    from evomerge.report.pages.report import write_report
    from evomerge.study.run_folder import open_run, run_folder, study_place

    with exit_codes():
        config, study = open_run(folder)
        if to_optuna_dashboard:
            from evomerge.report.to_optuna import save_figures

            for name in save_figures(study, study_place(config, run_folder(folder))[0]):
                say(name)
            return
        page = out or folder / "report.html"
        write_report(study, page)
        say(page)
