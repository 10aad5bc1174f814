"""Gradient descents as plain data: how far they came, what they cost, and how they went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from evomerge.results.progress import split_size
from evomerge.study.record import DescentRecord, Evaluation
from evomerge.study.study import Study


def shown_descent(record: DescentRecord) -> dict[str, Any]:
    """Show a gradient descent: how far it is, what it cost, and how its losses went."""
    return {
        "from": record.origin,
        "steps": record.step,
        "best_step": record.best_step,
        "items": record.items,
        "losses": record.losses,
        "held_back": record.checks,
        "done": record.done,
    }


def proposed_summary(study: Study, own: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Sum up the descents that proposals asked for; None where none did.

    Returns:
        `trials`, `steps`, `items` of those whose end is on record; `ended`: why → how many;
        `in_flight`: of each `ask`, `from`, `step` and `of`; `latest`: that of the last trial with
        one, as `shown_descent` has it, with the `task` that counted more and the end's `value`.
    """
    ended = [e.descent for e in own if e.descent]
    begun = [m for m in study.markers() if m.descent] if study.driven is not False else []
    if not ended and not begun:
        return None
    last = next((e for e in reversed(own) if e.descent), None)
    return {
        "trials": len(ended),
        "steps": sum(one.step for one in ended),
        "items": sum(one.items for one in ended),
        "ended": dict(Counter(one.done for one in ended)),
        "in_flight": [
            {
                "ask": marker.ask,
                "from": marker.descent.origin,
                "step": marker.descent.step,
                "of": marker.descent.asked.steps if marker.descent.asked else None,
            }
            for marker in begun
            if marker.descent
        ],
        "latest": last
        and last.descent
        and {
            **shown_descent(last.descent),
            "task": _raised(last.descent),
            "value": last.value,
        },
    }


def descent_curves(study: Study, own: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Give every descent as a curve over the items that were spent by then, in their order.

    Returns:
        Of each `from`, `task` (that counted more than others), `trial` (its number in the study;
        None of those that are none), `items` (spent when it began, and when it ended), `step_items`
        (when each step was made), `losses`, `look_items` (when each look was made), `held_back`
        (the losses found there), `look_steps`, `value` of its end, and `genes`: the genome at every
        look, of few genes.
    """
    whole = split_size(study, "search")
    found, spent = [], 0
    for record in study.descents():
        found.append(_curve(record, spent))
        spent += record.items
    for trial in own:
        if trial.descent:
            one = _curve(trial.descent, spent)
            found.append({**one, "trial": trial.number, "value": trial.value})
        spent += trial.cost(whole)
    # those that go on, side by side, and those from finalists, which stand beside the budget
    known = {trial.ask for trial in own}
    markers = [m for m in study.markers() if m.descent and m.ask not in known]
    going = [m.descent for m in markers] + [one.descent for one in study.polished()]
    return found + [_curve(record, spent) for record in going if record]


def score_curve(study: Study, own: Sequence[Evaluation]) -> dict[str, list[float]]:
    """Give the trials' scores over the items that were spent by then: `items`, `value`, `best`.

    Those that failed, or whose score is an estimate, are left out.
    """
    whole, spent = split_size(study, "search"), sum(one.items for one in study.descents())
    items, values, best = list[float](), list[float](), list[float]()
    for trial in own:
        spent += trial.cost(whole)
        if trial.measured and trial.value is not None:
            items.append(float(spent))
            values.append(trial.value)
            best.append(max(trial.value, best[-1]) if best else trial.value)
    return {"items": items, "value": values, "best": best}


def _raised(record: DescentRecord) -> str | None:
    """The task that counted more than the others in a descent's loss."""
    return record.asked.task if record.asked else None


def _curve(record: DescentRecord, before: int) -> dict[str, Any]:
    """Spread a descent's items over its steps and looks, in the order in which they were made."""
    steps, looked = len(record.losses), [int(step) for step, _ in record.checks]
    of_steps = record.items - record.held * len(looked)
    each = of_steps / steps if steps else 0.0
    # a look after step k comes before the next step, and after all looks before it
    look_items = [before + k * each + record.held * place for place, k in enumerate(looked, 1)]
    step_items = [
        before + k * each + record.held * sum(at < k for at in looked) for k in range(1, steps + 1)
    ]
    return {
        "from": record.origin,
        "task": _raised(record),
        "trial": None,
        "value": None,
        "items": [before, before + record.items],
        "step_items": step_items,
        "losses": record.losses,
        "look_items": look_items,
        "held_back": [loss for _, loss in record.checks],
        "look_steps": looked,
        "genes": record.trail,
    }
