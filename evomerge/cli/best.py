"""`evomerge best`: the verdict, and the best merge against every parent and baseline."""

from __future__ import annotations

from evomerge.cli.shared import AsJson, RunFolder, app, collector_off, exit_codes, show


@app.command()
def best(folder: RunFolder, as_json: AsJson = False) -> None:
    """Say whether a merge beats every parent and baseline, and by how much."""
    from evomerge.report.tables import best_table
    from evomerge.results import Results
    from evomerge.study.run_folder import open_study

    with exit_codes(), collector_off(), (study := open_study(folder)).still():
        show(Results(study).best(), as_json, best_table)
