"""The searched coefficients of recipes, layer by expert: of one, and of a population."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.recipe import BASE
from evomerge.study.study import Study


def coefficient_summary(study: Study, recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The searched coefficients of a recipe, in depth order.

    Returns:
        parameter → `bounds` [low, high], `rows` (embeddings, layers, final norm, head), `depths`
        (of the rows), `columns` (the experts, or one for a parameter they share), `values`
        [rows][columns]. Where the campaign chooses among methods, those that the recipe's methods
        have, without the groups whose method has them not.
    """
    weights = study.campaign["space"]["weights"]
    experts = [name for name in recipe["sources"] if name != BASE]
    tables = {}
    for parameter, bounds in searched_bounds(weights).items():
        found = _coefficients(recipe, parameter, weights["granularity"])
        of = {label: (depth, values) for label, depth, values in found if values}
        rows = {label: values for label, (_, values) in of.items()}
        if not rows:
            continue
        shared = all(None in row for row in rows.values())
        tables[parameter] = {
            "bounds": bounds,
            "rows": list(rows),
            "depths": [depth for depth, _ in of.values()],
            "columns": ["all experts"] if shared else experts,
            "values": [
                [row.get(column) for column in ([None] if shared else experts)]
                for row in rows.values()
            ],
        }
    return tables


def searched_bounds(weights: Mapping[str, Any] | None) -> dict[str, list[float]]:
    """Parameter → [low, high] of the campaign's `space.weights`; fixed ones are left out."""
    if weights is None:
        return {}
    found = {}
    methods = weights["method"]
    methods = [methods] if isinstance(methods, str) else methods
    for name, value in weights["genes"].items():
        first, dot, rest = name.partition(".")
        if dot and (first not in methods or "." in rest):
            continue  # of single genes, not of `ties.density`
        if isinstance(value, list):
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = [value["low"], value["high"]]
    return found


def _coefficients(
    recipe: Mapping[str, Any], parameter: str, granularity: str
) -> Iterator[tuple[str, float, dict[str | None, float]]]:
    """For each tuned group a label, its depth, and owner → value; a shared parameter's is None.

    `parameter` may be that of one method, `ties.density`.
    """
    method, _, parameter = parameter.rpartition(".")
    for merge in sorted(recipe["merges"], key=_depth):
        if method not in ("", merge["method"]):
            continue
        if granularity == "model":
            label = "whole model"
        elif merge["slot"] is None:
            label = merge["group"].replace("_", " ")
        else:
            module = "" if merge["group"] == "layer" else f" {merge['group']}"
            label = f"layer {merge['slot']}{module}"
        owners = {None: merge["parameters"], **merge["experts"]}
        values = {o: given[parameter] for o, given in owners.items() if parameter in given}
        yield label, _depth(merge), values


def _depth(merge: Mapping[str, Any]) -> float:
    """Where a merge stands from the embeddings to the head; those outside the layers keep order."""
    if merge["slot"] is not None:
        return merge["slot"]
    return -1 if merge["group"] == "embeddings" else float("inf")


def population_coefficients(
    study: Study, recipes: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The searched coefficients of several recipes: `coefficient_summary`, with the mean over them
    as `values`, and `spread`, the standard deviation, beside it. Both are over those recipes that
    have the coefficient; null where none has.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for recipe in recipes:
        for parameter, table in coefficient_summary(study, recipe).items():
            found.setdefault(parameter, []).append(table)
    return {parameter: _pooled(tables) for parameter, tables in found.items()}


def _pooled(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    depths = {
        row: depth
        for table in tables
        for row, depth in zip(table["rows"], table["depths"], strict=True)
    }
    rows = sorted(depths, key=lambda row: depths[row])
    columns = list(dict.fromkeys(column for table in tables for column in table["columns"]))
    cells: dict[tuple[str, str], list[float]] = {}
    for table in tables:
        for row, values in zip(table["rows"], table["values"], strict=True):
            for column, value in zip(table["columns"], values, strict=True):
                if value is not None:
                    cells.setdefault((row, column), []).append(value)

    def summed_up(statistic: Callable[[list[float]], Any]) -> list[list[float | None]]:
        return [
            [
                float(statistic(cells[row, column])) if (row, column) in cells else None
                for column in columns
            ]
            for row in rows
        ]

    return {
        "bounds": tables[0]["bounds"],
        "rows": rows,
        "depths": [depths[row] for row in rows],
        "columns": columns,
        "values": summed_up(np.mean),
        "spread": summed_up(np.std),
    }
