"""`evomerge best`: the winner against every parent and baseline."""

from __future__ import annotations

from evomerge.cli.shared import AsJson, RunFolder, app, exit_codes, show


@app.command()
def best(folder: RunFolder, as_json: AsJson = False) -> None:
    """Compare the winner with every parent and baseline: intervals and paired tests."""
    from evomerge.report.tables import best_table
    from evomerge.results import Results
    from evomerge.study.run_folder import open_run

    with exit_codes():
        _, study = open_run(folder)
        show(Results(study).best(), as_json, best_table)
