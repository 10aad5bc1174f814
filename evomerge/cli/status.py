"""`evomerge status`: how far a campaign is."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from evomerge.cli.shared import AsJson, RunFolder, app, collector_off, exit_codes, show, stdout
from evomerge.common.errors import InputError


@app.command()
def status(
    folder: RunFolder,
    as_json: AsJson = False,
    watched: Annotated[
        bool, typer.Option("--watch", help="Keep it up to date until the search ends.")
    ] = False,
) -> None:
    """Show how far a campaign is."""
    from evomerge.report.tables import status_table
    from evomerge.results import Results
    from evomerge.study.run_folder import FollowedRun, open_study

    with exit_codes():
        if watched:
            if as_json:
                raise InputError("--watch --json: choose one; --json prints one object and ends")
            from evomerge.report.watch import watch

            with suppress(KeyboardInterrupt):
                watch(FollowedRun(folder), stdout)
            return
        with collector_off(), (study := open_study(folder)).still():
            show(Results(study).status(), as_json, status_table)
