"""`evomerge dashboard`: a campaign in the browser as it goes on."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Annotated

import typer

from evomerge.cli.shared import RunFolder, app, exit_codes, say, warn
from evomerge.common.errors import EvomergeError


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
            warn(
                f"at {host} other machines can read this page, and nothing asks who they are; "
                "without --host only this machine can"
            )
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listening.getsockname()[1]}/")
        with suppress(EvomergeError):  # the page says so, until the study can be read
            content.text()
        gc.freeze()  # what was read is kept: the collector need not look at it again
        serve(content, listening, host)
