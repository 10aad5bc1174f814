"""`evomerge list`: merge methods, optimizers and the other plug-ins, with their options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evomerge.cli.shared import app, stdout, warn


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "optimizers", "objectives", "paths", "engines", "trackers"],
        typer.Argument(show_default=False),
    ],
) -> None:
    """List merge methods, optimizers, objectives, kinds of paths, engines or trackers."""
    from evomerge.cli import catalogue

    stdout.print(catalogue.plugin_table(what))
    for reason in catalogue.REGISTRIES[what].refused.values():
        warn(reason)
