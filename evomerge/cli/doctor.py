"""`evomerge doctor`: versions, devices, memory, disk and what is wrong, for a bug report."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evomerge.cli.shared import app, say


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show versions, devices, memory, free disk and what is wrong, to paste into a bug report."""
    from evomerge.preflight.doctor import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps({"facts": found.facts, "wrong": found.wrong}))
        return
    for name, text in found.facts:
        say(f"{name:10}{text}")
    for text in found.wrong:
        say(f"wrong:    {text}")
    if not found.wrong:
        say("nothing is wrong")
