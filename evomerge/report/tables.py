"""Tables of a study's results for a terminal, and the lines that pages share with them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.config import SPLITS
from evomerge.results import shown_split
from evomerge.results.composites import composite_line
from evomerge.results.routing_gap import routing_line
from evomerge.results.selection_bias import choice_line, test_sets_line, tests_line
from evomerge.results.verdict_words import leader_name, verdict_lines
from evomerge.results.written_numbers import difference, p_value, short, span, trial_line

_GOES_ON = "the same search command goes on with it"
STATES = {
    "running": "running: it searches",
    "selecting": "selecting: the search is over, and the finalists are scored on select",
    "testing": "testing: the winner, parents and baselines are scored on test",
    "done": "done",
    "stage done": "stage done: its winner is chosen, and the next stage follows",
    "stopped": f"stopped; {_GOES_ON}",
    "dead": f"dead: the search ended without saying so (killed, or its machine); {_GOES_ON}",
    None: f"not finished; from here it cannot be told whether a search runs; if not, {_GOES_ON}",
}
"""A campaign's state, in words; see `results.progress.state_of`."""
AT_WORK = ("running", "selecting", "testing")
AT_REST = ("done", "stage done")
SHOWN_OF_FRONT = 20
"""Rows of a front in the terminal."""
SHOWN_EVENTS = 5
"""Rows of the latest events of workers and machines."""


def best_name(status: dict[str, Any]) -> str:
    """Name the trial of the highest mean; of a front, the verdict prefers another as a rule."""
    one = "highest mean" if (status["verdict"] or {}).get("front") else "best"
    return f"{one} on search" if status["done"] else f"{one} so far"


def status_table(status: dict[str, Any]) -> RenderableType:
    """Lay `Results.status` out for people."""
    table = Table(title=f"campaign {status['name']}", show_header=False)
    leader = status["best"]
    stage = status["stage"]
    in_flight = f"{status['in_flight']}, on {status['workers']} workers"
    rows = {
        "state": STATES[status["state"]],
        **({"stage": f"{stage['name']}, {stage['place']} of {stage['of']}"} if stage else {}),
        "trials": trials_line(status),
        "completed": status["completed"],
        **({"pruned at a rung": status["pruned"]} if status["pruned"] else {}),
        "failed": status["failed"],
        **({"estimates": estimates_line(status["estimator"])} if status["estimator"] else {}),
        best_name(status): (
            f"{leader['value']:.4f} ({trial_line(leader)}, search split)" if leader else "none yet"
        ),
        **{
            f"gradient from {one['from']}": f"{one['steps']} steps, the best after "
            f"{one['best_step']}; {one['items']:,} items"
            + (f"; {one['done']}" if one["done"] else "")
            for one in status.get("descents", ())
        },
        **{f"polish of {one['from']}": polish_line(one) for one in status.get("polish", ())},
        **proposed_rows(status.get("proposed_descents")),
        "items scored": f"{status['item_evaluations']:,}",
        "time in evaluations": f"{status['seconds']:.1f} s",
        **reuse_row(status.get("merging") or {}),
        **({} if status["state"] in AT_REST else {"time left": left_line(status)}),
        **({"in flight": in_flight} if status["state"] in AT_WORK or status["in_flight"] else {}),
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    for place, line in enumerate(verdict_lines(status["verdict"])):
        table.add_row("" if place else "verdict", Text(line, style="" if place else "bold"))
    for reason, count in status["failures"].items():
        table.add_row(f"failed × {count}", Text(str(reason)))
    if status["events"]:
        table.add_row("workers", events_line(status["events"]))
        for moment, text in status["events"]["latest"][-SHOWN_EVENTS:]:
            table.add_row(f"{datetime.fromisoformat(moment).astimezone():%d %b %H:%M}", Text(text))
    return table


def reuse_row(found: Mapping[str, int]) -> dict[str, str]:
    """Say which share of the weights needed no merging; no row where all did."""
    if not (kept := found.get("tensors kept")):
        return {}
    share = found["parameters kept"] / found["parameters"]
    return {
        "not merged again": f"{share:.0%} of the weights ({kept:,} of {found['tensors']:,} "
        "tensors): the worker's model had them"
    }


def polish_line(one: Mapping[str, Any]) -> str:
    """Say how far a finalist's descent came, what it cost beside the budget, and what it gave."""
    line = f"{one['steps']} steps, the best after {one['best_step']}; {one['items']:,} items beside"
    if one["accepted"] is not None:
        line += "; accepted" if one["accepted"] else "; not better on select"
    return line + (f"; {one['done']}" if one["done"] and not one["accepted"] else "")


def proposed_rows(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Say how the descents went that proposals asked for, and where those in flight are."""
    if not found:
        return {}
    rows = {}
    if found["trials"]:
        rows["trials by gradient"] = (
            f"{found['trials']}, of {found['steps']} steps in all; {found['items']:,} items"
        )
    if (last := found["latest"]) is not None:
        loss = [value for _, value in last["held_back"]] or last["losses"]
        fell = f", loss {short(loss[0])} → {short(min(loss))}" if loss else ""
        scored = "failed" if last["value"] is None else f"scored {short(last['value'])}"
        raised = f" for {last['task']} above all" if last["task"] else ""
        rows["the latest"] = f"from {last['from']}{raised}{fell}, {scored}; {last['done']}"
    if found["in_flight"]:
        rows["descents in flight"] = "; ".join(
            f"step {one['step']} of {one['of']} from {one['from']}" for one in found["in_flight"]
        )
    return rows


def left_line(status: dict[str, Any]) -> str:
    """Say how long the search will still take, at its latest pace."""
    if status["left"] is None or not status["rate"]:
        return "not known yet"
    if not status["left"]:
        return "none: the budget is spent; the winner is chosen and tested next"
    resumed = " once it goes on" if status.get("state") in ("stopped", "dead") else ""
    pace = f"at {60 * status['rate']:.3g} trials a minute"
    return f"about {duration(status['left'])}{resumed}, {pace}"


def events_line(events: dict[str, Any]) -> str:
    """Say how many workers there were after the latest event, and count the kinds of events."""
    counts = {kind: n for kind, n in events["counts"].items() if kind != "workers joined"}
    return "; ".join([f"{events['workers']} at work", *(f"{k}: {n}" for k, n in counts.items())])


def trials_line(status: dict[str, Any]) -> str:
    """Say how much of the budget, in trials or in items, is spent."""
    if status["item_budget"] is None:
        return f"{status['trials']} of {status['budget']}"
    return f"{status['trials']}; {status['items_asked']:,} of {status['item_budget']:,} items"


def estimates_line(estimator: dict[str, Any]) -> str:
    """Say how estimates on the lowest rung compare with full scores."""
    name, checked = estimator["name"], estimator["checked"]
    if not checked:
        return f"{name}; nothing to check it by yet"
    off = estimator["off_after"]
    switched = f"; switched off after {off} checks" if off else ""
    return (
        f"{name}, off by {short(estimator['error'])} in the mean; {estimator['covered']} of "
        f"{checked} full scores within its 90 % interval{switched}"
    )


def best_table(best: dict[str, Any]) -> RenderableType:
    """Lay `Results.best` out for people: means, intervals, paired comparisons.

    Intervals and comparisons are of the test split once it is open, of the search split before.
    The verdict stands at the end, where it is seen first.
    """
    shown, leader = shown_split(best), leader_name(best)
    title = f"{leader}: {trial_line(best)}, recipe {best['digest'][:12]}"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("recipe", min_width=12)
    for split in SPLITS:
        table.add_column(split, justify="right", no_wrap=True)
    table.add_column(f"{leader} − this", justify="right", no_wrap=True)
    if shown == "test":
        table.add_column("p", justify="right", no_wrap=True)
    table.add_row(leader, *_means(best["scores"], shown), style="bold")
    for kind in ("parents", "baselines", "grid"):
        table.add_section()
        for name, scores in listed_once(best[kind]).items():
            paired = (scores[shown] or {}).get("winner_minus_this")
            lead = [difference(paired)] if paired else []
            if paired and paired["p_holm"] is not None:
                lead.append(p_value(paired["p_holm"]))
            table.add_row(name, *_means(scores, shown), *lead)
    parts: list[RenderableType] = [table, *map(Text, stage_lines(best))]
    if best.get("front"):
        parts.append(front_table(best))
    parts += [Text(line, style="" if holds else "yellow") for line, holds in constraint_lines(best)]
    parts += [Text(line, style="dim") for line in remarks(best)]
    parts += [Text("")] + [
        Text(line, style="" if place else "bold")
        for place, line in enumerate(verdict_lines(best["verdict"]))
    ]
    if verdict := audit_verdict(best):
        parts.append(Text(verdict, style="yellow"))
    return Group(*parts)


def listed_once(named: Mapping[str, Any]) -> dict[str, Any]:
    """List recipes that score alike on every task of every split under their names together."""
    found: dict[str, tuple[list[str], Any]] = {}
    for name, scores in named.items():
        means = [scores[split] and scores[split]["tasks"] for split in SPLITS]
        found.setdefault(repr(means), ([], scores))[0].append(name)
    return {" = ".join(names): scores for names, scores in found.values()}


def export_hint(best: Mapping[str, Any], folder: str) -> str:
    """Say how to export what a search came to."""
    verdict, command = best["verdict"], f"evomerge export {folder} --to DIR"
    if verdict["stage"] and verdict["beats"]:
        return f"export the winner of stage {verdict['stage']['stage']}: {command}"
    if verdict["beats"]:
        return f"export {'the winner' if verdict['kind'] == 'wins' else 'it'}: {command}"
    return f"export it all the same: {command} --anyway"


def front_table(best: dict[str, Any]) -> Table:
    """List the trials of the Pareto front, the preferred first, and the parents."""
    rows = front_rows(best)
    merges = sum(row["role"] == "merge" for row in rows)
    table = Table(title=f"the front on search: {len(best['front'])} recipes", box=SIMPLE)
    table.add_column("trial", min_width=6)
    for goal in best["front"][0]["search"]:
        for split in SPLITS:
            table.add_column(
                goal if split == "search" else f"on {split}",
                justify="right",
                style="" if split == "search" else "dim",
            )
    for place, row in enumerate(rows):
        if row["role"] == "merge" and place >= SHOWN_OF_FRONT:
            continue
        if place == merges:
            table.add_section()
        cells = [
            short(row[split][goal]) if row[split] else "–"
            for goal in best["front"][0]["search"]
            for split in SPLITS
        ]
        table.add_row(row["name"], *cells, style="bold" if row["preferred"] else "")
    if merges > SHOWN_OF_FRONT:
        table.caption = f"and {merges - SHOWN_OF_FRONT} more (--json has all)"
    return table


def front_rows(best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the points of the Pareto front once each, the preferred first, then the parents.

    Returns:
        for each `name` (its trials, or the parent's name), `role` ("merge" | "parent"),
        `preferred`, `trial` (the preferred, or its first; None of a parent), `digest`, and on every
        split goal → mean, or null where it was not measured.
    """
    # 1. recipes that are equal in all goals on search are one point
    found: dict[tuple[float, ...], dict[str, Any]] = {}
    for point in best["front"]:
        row = found.setdefault(
            tuple(point["search"].values()), {**point, "role": "merge", "also": []}
        )
        if row["trial"] != point["trial"]:
            row["also"].append(point["trial"])
        if point["digest"] == best["digest"] != row["digest"]:
            row["also"][-1] = row["trial"]
            row.update({key: point[key] for key in ("trial", "digest", *SPLITS)})
        row["preferred"] = row["digest"] == best["digest"]
    for row in found.values():
        also = row.pop("also")
        row["name"] = f"{row['trial']}" + (f" (+{len(also)} alike)" if also else "")
    # 2. the parents, by the same goals
    goals = list(best["front"][0]["search"])
    for name, scores in best["parents"].items():
        means = {
            split: {goal: scores[split]["tasks"][goal]["mean"] for goal in goals}
            if scores[split]
            else None
            for split in SPLITS
        }
        facts = {"name": name, "role": "parent", "preferred": False, "trial": None, "digest": ""}
        found[(name,)] = {**facts, **means}
    return list(found.values())


def stage_lines(best: Mapping[str, Any]) -> list[str]:
    """Say which winners of earlier stages the winner is made of."""
    return [
        f"stage {one['stage']}: trial {one['trial']}, recipe {one['digest'][:12]}, "
        f"search {short(one['search'])}, select {short(one['select'])}, made of "
        f"{', '.join(one['of'])}"
        for one in best["stages"]
    ]


def audit_verdict(best: Mapping[str, Any]) -> str | None:
    """Say what the trust audit objects to, if anything."""
    return (best.get("audit") or {}).get("verdict")


def constraint_lines(best: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Say every constraint as measured on the split shown, each with whether it holds."""
    return [
        (
            f"constraint {'holds' if found['holds'] else 'BROKEN'} on {shown_split(best)}: "
            f"{found['label']} {short(found['measured'])}, at most {short(found['limit'])}",
            found["holds"],
        )
        for found in best["constraints"][shown_split(best)] or []
    ]


def _means(scores: dict[str, Any], shown: str) -> list[str]:
    cells = []
    for split in SPLITS:
        score = scores[split]
        if score is None:
            cells.append("–")
        elif split == shown:
            cells.append(f"{short(score['mean'])} {span(score)}")
        else:
            cells.append(short(score["mean"]))
    return cells


def duration(seconds: float) -> str:
    """Write a time in seconds to read: `8 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def remarks(best: Mapping[str, Any]) -> list[str]:
    """Say how to read the table, and what the reader must not overlook."""
    split = shown_split(best)
    lines = [f"In brackets: 95 % intervals, on {split}; {tests_line(best, split)}."]
    if best["choice"]:
        lines.append(choice_line(best["choice"], short))
    if best["test_sets"]:
        lines.append(test_sets_line(best["test_sets"]))
    lines += [composite_line(one, split) for one in best["composites"]]
    if best["routing"]:
        lines.append(routing_line(best["routing"], leader_name(best)))
    opened = best["test_opened"]
    if not opened:
        lines.append("The test split has not been opened: the budget is not spent.")
    elif len(opened) > 1:
        counts = ", ".join(str(entry["trials"]) for entry in opened)
        lines.append(
            f"The test split was opened {len(opened)} times (after {counts} trials): the campaign "
            "was extended after it had been seen, so the last figures are not on untouched data."
        )
    return lines
