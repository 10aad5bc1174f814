"""`evomerge list`: merge methods, optimizers and the other plug-ins, in one line each."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from evomerge.cli.shared import app, hint, stdout, warn


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "optimizers", "objectives", "paths", "engines", "trackers"],
        typer.Argument(show_default=False),
    ],
) -> None:
    """List merge methods, optimizers, objectives, kinds of paths, engines or trackers."""
    from rich.table import Table
    from rich.text import Text

    from evomerge.explain.plugins import REGISTRIES, summaries

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    found = summaries(what)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for name, summary in found.items():
        table.add_row(name, Text(summary))
    stdout.print(table)
    hint("their options and an example: evomerge explain NAME")
    for reason in REGISTRIES[what].refused.values():
        warn(reason)
