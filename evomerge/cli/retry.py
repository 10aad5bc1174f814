"""`evomerge retry`: have failed evaluations made again by the next search."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from evomerge.cli.shared import RunFolder, app, exit_codes, hint, say
from evomerge.common.errors import InputError


@app.command()
def retry(
    folder: RunFolder,
    failed: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Only those whose reason holds this text.", show_default="all"
        ),
    ] = None,
) -> None:
    """Have failed evaluations made again: what failed them is mended."""
    from evomerge.study.run_folder import CAMPAIGN_FILE, study_to_mend

    with exit_codes():
        with study_to_mend(folder) as study:
            known = [e for e in study.evaluations() if e.reason is not None]
            wanted = (failed or "").casefold()
            found = [e for e in known if wanted in str(e.reason).casefold()]
            if known and not found:
                reasons = "; ".join(dict.fromkeys(str(e.reason) for e in known))
                raise InputError(
                    f"--failed {failed}: nothing failed so; the reasons are: {reasons}"
                )
            study.withdraw(found)
        for reason, count in Counter(str(e.reason) for e in found).items():
            hint(f"{count} × {reason}")
        say(f"{len(found)} failed evaluations are made again by the next search")
        if found:
            again = f"evomerge search {folder / CAMPAIGN_FILE} --out {folder}"
            hint(f"the campaign's own command goes on, or:\n  {again}")
