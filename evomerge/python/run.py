"""A run's folder as an object: its winner, trials, figures, report and exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.config import CampaignConfig
from evomerge.study import run_folder
from evomerge.study.study import Study

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from evomerge.results import Results


class Run:
    """A run, finished or going on; every call reads what is on record at that moment.

    Attributes:
        folder: the run's folder.
        campaign: the campaign, or that of its latest stage.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a run's folder for reading.

        Raises:
            InputError: the folder holds no run, or its study cannot be read.
        """
        self.folder = Path(folder)
        with self._study() as study:
            self._name = study.name

    @property
    def campaign(self) -> CampaignConfig:
        """The campaign, or that of its latest stage, with absolute paths."""
        config, study = run_folder.open_run(self.folder)
        study.close()
        return config

    def __repr__(self) -> str:
        """Show name, folder and how far it is."""
        status = self.status()
        far = "done" if status["done"] else f"{status['trials']} of {status['budget']} trials"
        return f"<Run {self._name!r} in {self.folder}: {far}>"

    def status(self) -> dict[str, Any]:
        """Say how far the run is, as `evomerge status --json` does."""
        with self._study() as study:
            return _results(study).status()

    def best(self) -> dict[str, Any]:
        """Compare the winner with every parent and baseline, as `evomerge best --json` does.

        Raises:
            InputError: no trial has succeeded yet.
        """
        with self._study() as study:
            return _results(study).best()

    def trials(self) -> pandas.DataFrame:
        """List the optimizer's trials, in their order.

        Returns:
            a frame with the trial's number as index; `value`, `se` (standard error), `estimated`,
            `reason` (of a failure), `seconds` (of wall time), `digest` (the recipe's), and a column
            for each gene, called `gene:` and its name.
        """
        import pandas

        with self._study() as study:
            results = _results(study)
            rows = [
                {
                    **row,
                    "seconds": sum(one.seconds.values()),
                    "digest": one.digest,
                    **{f"gene:{name}": value for name, value in one.params.items()},
                }
                for row, one in zip(results.trials(), results.own, strict=True)
            ]
        columns = ["trial", "value", "se", "estimated", "reason", "seconds", "digest"]
        return pandas.DataFrame(rows, columns=None if rows else columns).set_index("trial")

    def figures(self) -> dict[str, plotly.graph_objects.Figure]:
        """Draw the figures of the report; returns label → plotly figure, in the report's order."""
        from evomerge.report.all_figures import view_of

        with self._study() as study:
            return {figure.label: figure.figure for figure in view_of(study).figures}

    def report(self, path: str | Path | None = None) -> Path:
        """Write the run as one HTML page; returns its path, by default `report.html` in the folder.

        Raises:
            InputError: no trial has succeeded yet, or the file cannot be written.
        """
        from evomerge.report.pages.report import write_report

        page = self.folder / "report.html" if path is None else Path(path)
        with self._study() as study:
            write_report(study, page)
        return page

    def export(
        self,
        to: str | Path,
        *,
        trial: int | None = None,
        format: Literal["hf", "mergekit", "recipe"] = "hf",
        anyway: bool = False,
    ) -> Path:
        """Write the winner, or another trial, as a checkpoint that transformers loads.

        Args:
            to: a new folder, or the file's path.
            trial: a trial's number; by default the winner's.
            format: `hf`, a checkpoint folder; `mergekit` or `recipe`, that one file.
            anyway: without `trial`, write the best merge, also if it beats no parent.

        Raises:
            InputError: no such trial, no merge beats the parents, the models have changed, or `to`
                cannot be written.
        """
        from evomerge.export.trial import export_trial

        config, study = run_folder.open_run(self.folder)
        with study:
            own = run_folder.run_folder(self.folder)
            return export_trial(config, study, trial, Path(to), format, own, anyway=anyway)

    def _study(self) -> Study:
        return run_folder.open_run(self.folder)[1]


def open_run(folder: str | Path) -> Run:
    """Open a run's folder, such as `runs/quickstart`.

    Raises:
        InputError: the folder holds no run, or its study cannot be read.
    """
    return Run(folder)


def _results(study: Study) -> Results:
    from evomerge.results import Results

    return Results(study)
