"""LiNeS: task vectors scaled by depth, as a recipe made of another, whatever its methods."""

from __future__ import annotations

from evomerge.common.errors import InputError
from evomerge.methods import find_method
from evomerge.recipe.recipe import Merge, Recipe, merge_name


def scaled_by_depth(recipe: Recipe, layers: int, alpha: float, beta: float) -> Recipe:
    """Scale every merged task vector by α + β·l/(L−1), outside the layers by α.

    The factor goes into the merges' `lambda`, so that it costs nothing to materialize and is part
    of the recipe's digest. l is the slot in the path, L = `layers`; one layer counts as the first.
    Source: Wang et al. 2024, arXiv:2410.17146, eq. 2 (α = 1/N or the tuned λ, β tuned).

    Raises:
        InputError: a merge's method has no `lambda` (linear, slerp, passthrough), or the scaled one
            is out of its range.
    """
    depth = max(layers - 1, 1)
    merges = [_scaled(merge, alpha + beta * (merge.slot or 0) / depth) for merge in recipe.merges]
    return recipe.model_copy(update={"merges": tuple(merges)})


def _scaled(merge: Merge, factor: float) -> Merge:
    where = f"recipe: {merge_name(merge)}: scaled by depth"
    method = find_method(merge.method, where)
    if "lambda" not in method.parameters:
        raise InputError(
            f"{where}: {merge.method} has no 'lambda' to scale; use a method of task vectors, "
            "such as task_arithmetic for linear"
        )
    parameter = method.parameters["lambda"]
    value = merge.parameters.get("lambda", parameter.default)
    scaled = parameter.check(float(value) * factor, f"{where}: lambda")
    return merge.model_copy(update={"parameters": {**merge.parameters, "lambda": scaled}})
