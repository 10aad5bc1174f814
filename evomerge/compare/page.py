"""The comparison for people: a table for the terminal, and a page with the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.common.errors import InputError
from evomerge.common.extras import has
from evomerge.compare.figure import interactive, references, save_picture, title
from evomerge.report.pages.report import asset, page_environment
from evomerge.results.written_numbers import short, span

TEMPLATE = "compare.html.j2"


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `compare.html`, `compare.png` and `compare.json` into the folder.

    The picture is left out where matplotlib is not installed.

    Raises:
        InputError: the folder cannot be written.
    """
    page, picture, data = (folder / f"compare.{kind}" for kind in ("html", "png", "json"))
    try:
        data.write_text(json.dumps(comparison, indent=1), encoding="utf-8")
        page.write_text(comparison_page(comparison), encoding="utf-8")
        if draws := has("matplotlib"):
            save_picture(comparison, picture)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written ({error.strerror})") from None
    return [page, picture, data] if draws else [page, data]


def comparison_table(comparison: Mapping[str, Any]) -> RenderableType:
    """Lay the comparison out for a terminal."""
    table = Table(title=title(comparison), box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("optimizer", min_width=12, overflow="fold")
    for column in columns(comparison):
        table.add_column(column, justify="right", no_wrap=True)
    for label, cells in rows(comparison).items():
        table.add_row(Text(label), *cells)
    return Group(table, *[Text(line, style="dim") for line in remarks(comparison)])


def columns(comparison: Mapping[str, Any]) -> list[str]:
    """Name the table's columns of an optimizer."""
    until = {"target": comparison["target"], "the first": comparison["first"]}
    items, first = (
        f"items\nto {name if score is None else short(score)}" for name, score in until.items()
    )
    return ["select", "quartiles", items, "arrived", first, "wins"]


def rows(comparison: Mapping[str, Any]) -> dict[str, list[str]]:
    """Fill the table: optimizer → cells, the best median first."""
    found = comparison["optimizers"]
    medians = {label: facts["final"]["median"] for label, facts in found.items()}
    ranked = sorted(found, key=lambda label: -(medians[label] or 0.0))
    return {label: _cells(found[label]) for label in ranked}


def remarks(comparison: Mapping[str, Any]) -> list[str]:
    """Say how to read the table."""
    trials, items = comparison["trials"], comparison["search_items"]
    found = comparison["optimizers"]
    each = f"{trials} trials of {items} search items, {trials * items:,} item evaluations"
    if comparison.get("items"):
        each = f"{comparison['items']:,} evaluations of {items} search items"
    lines = [
        f"Every run: {each}. "
        "The best by search so far is scored on select "
        f"({comparison['select_items']} items) in hindsight; no optimizer is told.",
    ]
    spent = {label: max(c["curve"]["spent"], default=0) for label, c in found.items()}
    beyond = [label for label, most in spent.items() if most > trials * items]
    if beyond and not comparison.get("items"):
        lines.append(
            f"Gradient descents come on top: {', '.join(beyond)} spent up to "
            f"{max(spent.values()):,.0f}. To compare at equal cost give the budget in items "
            "(budget.items)."
        )
    if comparison["target"] is not None:
        lines.append(
            f"Target: .95 of the best known score, {short(comparison['best_known'])} (the highest "
            "on select of all that was measured); items to it: the median run, – unless more "
            "than half of the runs arrived. Seeds that tie share the win."
        )
    if comparison["first"] is not None:
        label = next(iter(comparison["optimizers"]))
        lines.append(
            f"{short(comparison['first'])}: what {label} ends with, in the median; items to it "
            "likewise."
        )
    lines += [f"On select, {name}." for name, _ in references(comparison)]
    return lines


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Render the page as text; it needs nothing else, no network either."""
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            comparison=comparison,
            title=title(comparison),
            figure_data=interactive(comparison).to_plotly_json(),
            columns=columns(comparison),
            rows=rows(comparison),
            remarks=remarks(comparison),
            short=short,
            plotly=get_plotlyjs(),
            script=asset("page.js"),
        )
    )


def _cells(facts: Mapping[str, Any]) -> list[str]:
    final, until, wins = facts["final"], facts["to_target"], facts["wins"]
    median, first = final["median"], facts["to_first"]["median"]
    return [
        "–" if median is None else short(median),
        "" if median is None else span(final),
        "–" if until["median"] is None else f"{until['median']:,.0f}",
        f"{until['reached']} of {until['of']}",
        "–" if first is None else f"{first:,.0f}",
        f"{wins:.1f}".removesuffix(".0"),
    ]
