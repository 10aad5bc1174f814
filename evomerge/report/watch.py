"""`evomerge status --watch`: the status table, drawn again as the campaign goes on."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live

from evomerge.report.tables import status_table
from evomerge.results import Results
from evomerge.study.run_folder import FollowedRun

SECONDS = 2.0
SHARE = 0.1
"""The largest share of the time that is spent on reading the study."""


def watch(run: FollowedRun, console: Console) -> None:
    """Show the status until the search is over, done or not; Ctrl-C ends it too.

    Raises:
        InputError: the study cannot be read.
    """
    with Live(console=console, auto_refresh=False) as live:
        while True:
            started = time.monotonic()
            study = run.study
            with study.still():
                status = Results(study).status()
            live.update(status_table(status), refresh=True)
            state = status["state"]
            between = state == "stage done" and run.between_stages
            if state in ("done", "stopped", "dead") or (state == "stage done" and not between):
                return
            time.sleep(max(SECONDS, (time.monotonic() - started) / SHARE))
