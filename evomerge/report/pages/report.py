"""The report: a study as one HTML page that needs nothing else, no network either."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from evomerge.common.errors import InputError
from evomerge.config import SPLITS
from evomerge.report.all_figures import StudyView, view_of
from evomerge.report.figures.scores import Rows
from evomerge.report.tables import (
    audit_verdict,
    best_name,
    constraint_lines,
    duration,
    estimates_line,
    export_hint,
    front_rows,
    listed_once,
    polish_line,
    remarks,
    stage_lines,
    trials_line,
)
from evomerge.results import REFERENCES
from evomerge.results.audit import audit_rows
from evomerge.results.coefficients import searched_bounds
from evomerge.results.verdict_words import verdict_lines
from evomerge.results.written_numbers import difference, p_value, short, span, trial_line
from evomerge.study.study import Study


def write_report(study: Study, path: Path) -> None:
    """Write the page of a study that may still be running.

    Raises:
        InputError: no trial has succeeded yet, or the file cannot be written.
    """
    page = report_page(study)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from None


def report_page(study: Study) -> str:
    """Render the page as text.

    Raises:
        InputError: no trial has succeeded yet.
    """
    view = view_of(study)
    if view.best is None:
        raise InputError(
            f"study {study.name!r}: no trial has succeeded yet; `evomerge status` says how far it "
            "is and what failed"
        )
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(**shown_in_page(view), script=asset("page.js"), plotly=get_plotlyjs())
    )


def shown_in_page(view: StudyView) -> dict[str, Any]:
    """Collect the names that the template of a page's content uses."""
    best = view.best
    audited = audit_rows(best["audit"]) if best and best["audit"] else []
    return {
        "view": view,
        "live": False,
        "best": best,
        "facts": view.facts,
        "status": view.status,
        "running": view.running,
        "split": view.split,
        "leader": view.leader,
        "rows": view.rows,
        "splits": SPLITS,
        "bounds": searched_bounds(view.facts["weights"]),
        "strongest": {role: _strongest(view.rows, role) for role in REFERENCES},
        "references": {
            "parent": best["parents"],
            "baseline": listed_once(best["baselines"]),
            "grid": best["grid"],
        }
        if best
        else {},
        "verdict": verdict_lines(best["verdict"]) if best else [],
        "remarks": remarks(best) if best else [],
        "constraints": constraint_lines(best) if best else [],
        "audit_verdict": best and audit_verdict(best),
        "audit_rows": audited,
        "audit_answers": any(
            row[fact] is not None for row in audited for fact in ("cut", "unparsed", "tokens")
        ),
        "front": front_rows(best) if best and best.get("front") else [],
        "stages": stage_lines(best) if best else [],
        "recipe": best and json.dumps(best["recipe"], indent=2, ensure_ascii=False),
        "estimates_line": estimates_line,
        "trials_line": trials_line,
        "trial_line": trial_line,
        "best_name": best_name,
        "polish_line": polish_line,
        "export_line": _with_command(export_hint(best, "RUN")) if best and best["verdict"] else "",
    }


def page_environment() -> Environment:
    """Load the pages' templates; they escape what they are given."""
    environment = Environment(
        loader=PackageLoader("evomerge.report.pages", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        short=short,
        span=span,
        difference=difference,
        p_value=p_value,
        duration=duration,
        coded=_coded,
    )
    return environment


def asset(name: str) -> str:
    """Read a script of the pages: `page.js` draws figures, `live.js` keeps them up to date."""
    return files("evomerge.report.pages").joinpath(name).read_text(encoding="utf-8")


def _with_command(hint: str) -> str:
    """Put the command at the end of a hint between the marks of code."""
    words, _, command = hint.partition(": ")
    return f"{words}: `{command}`"


def _coded(text: str) -> Markup:
    """Escape a text, and show as code what stands between backticks."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _strongest(rows: Rows, role: str) -> str | None:
    """Name of the best of a role; the earlier of equals."""
    means = {name: scores["mean"] for (kind, name), scores in rows.items() if kind == role}
    return max(means, key=lambda name: means[name], default=None)
