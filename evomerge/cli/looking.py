"""Commands that only read: status, best, report, dashboard, list."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from evomerge.cli.shared import AsJson, RunFolder, app, exit_codes, show, stderr, stdout
from evomerge.common.errors import InputError


@app.command()
def status(
    folder: RunFolder,
    as_json: AsJson = False,
    watched: Annotated[
        bool, typer.Option("--watch", help="Keep it up to date until the campaign is done.")
    ] = False,
) -> None:
    """How far a campaign is."""
    from evomerge.report.tables import status_table
    from evomerge.results.results import Results
    from evomerge.study.run_folder import FollowedRun, open_run

    with exit_codes():
        if watched:
            if as_json:
                raise InputError("--watch --json: choose one; --json prints one object and ends")
            from evomerge.report.watch import watch

            with suppress(KeyboardInterrupt):
                watch(FollowedRun(folder), stdout)
            return
        _, study = open_run(folder)
        summary = Results(study).status()
        show(summary, as_json, status_table)


@app.command()
def best(folder: RunFolder, as_json: AsJson = False) -> None:
    """The winner, against every parent and baseline, with intervals and paired tests."""
    from evomerge.report.tables import best_table
    from evomerge.results.results import Results
    from evomerge.study.run_folder import open_run

    with exit_codes():
        _, study = open_run(folder)
        summary = Results(study).best()
        show(summary, as_json, best_table)


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

            saved = save_figures(study, study_place(config, run_folder(folder))[0])
            stdout.print("\n".join(saved), markup=False, highlight=False)
            return
        page = out or folder / "report.html"
        write_report(study, page)
        stdout.print(f"{page}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def dashboard(
    folder: RunFolder,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8060,
) -> None:
    """Show a campaign in the browser as it goes on. It only reads; Ctrl-C ends it."""
    with exit_codes():
        from evomerge.report.pages.dashboard import Content, is_loopback, listen, serve

        content = Content(folder)
        listening = listen(host, port)
        if not is_loopback(host):
            stderr.print(
                f"warning: at {host} other machines can read this page, and nothing asks who they "
                "are; without --host only this machine can",
                style="yellow",
                soft_wrap=True,
            )
        shown = f"[{host}]" if ":" in host else host
        stdout.print(
            f"http://{shown}:{listening.getsockname()[1]}/",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        serve(content, listening, host)


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "optimizers", "objectives", "paths", "engines", "trackers"],
        typer.Argument(show_default=False),
    ],
) -> None:
    """List merge methods, optimizers, objectives, kinds of paths, engines or trackers."""
    from evomerge.cli import catalogue

    stdout.print(getattr(catalogue, what)())
    for reason in catalogue.REGISTRIES[what].refused.values():
        stderr.print(f"warning: {reason}", style="yellow", markup=False)
