"""The searched coefficients of one recipe, and of a population, layer by expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.recipe import BASE
from evomerge.study.study import Study


def coefficient_summary(study: Study, recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tabulate the searched coefficients of a recipe, in depth order.

    Returns:
        parameter → `bounds` [low, high], `rows` (embeddings, layers, final norm, head), `depths`
        (of the rows), `columns` (the experts, or one for a parameter they share), `values`
        [rows][columns]. Where the campaign chooses among methods: the parameters of the recipe's
        methods, without the groups whose method lacks them.
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
    """Map each searched parameter of the campaign's `space.weights` to its [low, high]."""
    if weights is None:
        return {}
    found = {}
    methods = weights["method"]
    methods = [methods] if isinstance(methods, str) else methods
    for name, value in weights["genes"].items():
        first, dot, rest = name.partition(".")
        if dot and (first not in methods or "." in rest):
            continue  # bounds of single genes (`weight.layer_0.math`), not of `ties.density`
        if isinstance(value, list):
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = [value["low"], value["high"]]
    return found


def _coefficients(
    recipe: Mapping[str, Any], parameter: str, granularity: str
) -> Iterator[tuple[str, float, dict[str | None, float]]]:
    """Yield each tuned group's label, depth, and owner → value; a shared one's owner is None.

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
    """Sort key from the embeddings to the head; groups after the layers keep their order."""
    if merge["slot"] is not None:
        return merge["slot"]
    return -1 if merge["group"] == "embeddings" else float("inf")


def population_coefficients(
    study: Study, recipes: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Pool the searched coefficients of several recipes, in the form of `coefficient_summary`.

    Returns:
        as there, with the means over the recipes as `values`, and the standard deviations as
        `spread` [rows][columns]; both over the recipes that have the coefficient, null without.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for recipe in recipes:
        for parameter, table in coefficient_summary(study, recipe).items():
            found.setdefault(parameter, []).append(table)
    return {parameter: _pooled(tables) for parameter, tables in found.items()}


def _pooled(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # 1. rows and columns of any of the tables
    depths = {
        row: depth
        for table in tables
        for row, depth in zip(table["rows"], table["depths"], strict=True)
    }
    rows = sorted(depths, key=lambda row: depths[row])
    columns = list(dict.fromkeys(column for table in tables for column in table["columns"]))
    # 2. the values of each cell over the tables
    cells: dict[tuple[str, str], list[float]] = {}
    for table in tables:
        for row, values in zip(table["rows"], table["values"], strict=True):
            for column, value in zip(table["columns"], values, strict=True):
                if value is not None:
                    cells.setdefault((row, column), []).append(value)

    def pooled(statistic: Callable[[list[float]], Any]) -> list[list[float | None]]:
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
        "values": pooled(np.mean),
        "spread": pooled(np.std),
    }
