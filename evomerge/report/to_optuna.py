"""The report's figures, saved in the study for optuna-dashboard to show."""

from __future__ import annotations

import optuna
import plotly.graph_objects as go

from evomerge.common.extras import require
from evomerge.report.all_figures import Figure, view_of
from evomerge.report.figures.style import COLORS, FAINT, shown
from evomerge.study.storage import close, open_for_writing
from evomerge.study.storage_errors import errors_explained
from evomerge.study.study import Study

HEIGHT = 450
"""Height of a figure in optuna-dashboard, in pixels."""
BELOW_BUTTONS = {"x": 0.02, "y": 0.94, "yanchor": "top"}


def save_figures(study: Study, storage: str) -> list[str]:
    """Save every figure as attributes of the study, in place of earlier ones of the same name.

    Nothing else in the study is touched, so that it may be done while the campaign runs.

    Args:
        study: read from.
        storage: the URL it lies at.

    Returns:
        The figures' names in optuna-dashboard.

    Raises:
        InputError: optuna-dashboard is not installed, or the storage cannot be written.
    """
    require("optuna_dashboard", "dashboard", "--to-optuna-dashboard")
    from optuna_dashboard import save_plotly_graph_object

    figures = list(view_of(study).figures)
    rdb = open_for_writing(storage)
    try:
        with errors_explained(storage):
            target = optuna.load_study(study_name=study.name, storage=rdb)
            return [
                save_plotly_graph_object(target, adapted(one), graph_object_id=one.id)
                for one in figures
            ]
    finally:
        close(rdb)


def adapted(figure: Figure) -> go.Figure:
    """Give the figure a title of its own, optuna-dashboard's height and its colours."""
    drawn = go.Figure(figure.figure)
    drawn.update_layout(
        title={"text": shown(figure.label, 60), "font": {"size": 14}, **BELOW_BUTTONS},
        height=HEIGHT,
        margin={"t": (drawn.layout.margin.t or 0) + 60},
        font={"color": COLORS["baseline"]},
    )
    lines = {"gridcolor": FAINT, "zerolinecolor": FAINT, "linecolor": FAINT}
    return drawn.update_xaxes(lines).update_yaxes(lines)
