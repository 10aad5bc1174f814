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

    from evomerge.explain.plugins import REGISTRIES, plugin_topics

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    found = {n: t for n, t in plugin_topics(what).items() if t.kind != "option"}
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for name, topic in found.items():
        table.add_row(name, Text(topic.summary))
    stdout.print(table)
    hint("their options and an example: evomerge explain NAME")
    for reason in REGISTRIES[what].refused.values():
        warn(reason)
