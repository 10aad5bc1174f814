"""Sparsifiers before any method of task vectors, as a recipe made of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.common.errors import InputError
from evomerge.methods.core.registry import Method, find_method
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.recipe.recipe import Merge, Recipe, merge_name


def sparsified(
    recipe: Recipe,
    kind: str,
    density: Callable[[Merge], float],
    options: Mapping[str, Any],
    seed: int,
) -> Recipe:
    """Make the recipe that has the task vectors of every merge made sparse before it merges them.

    Args:
        kind: the sparsifier's name.
        density: a merge's; at 1 the merge stays as it is.
        options: the sparsifier's other parameters, where they are not its defaults.
        seed: keys the masks, where there are any.

    Raises:
        InputError: a merge's method has no task vectors, or both draw at random.
    """
    merges = [_sparse(merge, kind, density(merge), options) for merge in recipe.merges]
    if all(merge.sparsifier is None for merge in merges):
        return recipe
    keyed = {"seed": seed} if sparsifiers()[kind].random else {}
    return recipe.model_copy(update={"merges": tuple(merges), **keyed})


def _sparse(merge: Merge, kind: str, density: float, options: Mapping[str, Any]) -> Merge:
    if density == 1:
        return merge
    own = {"kind": kind, "density": density, **options}
    found = Merge.model_validate({**merge.model_dump(), "sparsify": own})
    check_sparsifiable(find_method(merge.method, f"recipe: {merge_name(merge)}"), found)
    return found


def check_sparsifiable(method: Method, merge: Merge) -> None:
    """Refuse a merge whose sparsifier cannot stand before its method.

    Raises:
        InputError: names the merge.
    """
    if merge.sparsifier is not None:
        key = "drop" if merge.drop else "sparsify"
        check_kind(method, merge.sparsifier.kind, f"recipe: {merge_name(merge)}: {key}")


def check_kind(method: Method, kind: str, where: str) -> None:
    """Refuse a method before which task vectors cannot be made sparse in this way.

    Raises:
        InputError: it has no task vectors, or both draw at random; begins with `where`.
    """
    if not method.has_task_vectors:
        raise InputError(
            f"{where}: {method.name} has no task vectors to drop entries of; use a method of task "
            "vectors, such as task_arithmetic for linear"
        )
    if method.needs_position and sparsifiers()[kind].random:
        raise InputError(
            f"{where}: {method.name} drops entries at random itself; use its own density, or a "
            "method without masks, such as task_arithmetic or ties"
        )


_PRODUCTS = {
    ("task_arithmetic", "dare"): "dare_linear",
    ("task_arithmetic", "della"): "della_linear",
    ("task_arithmetic", "breadcrumbs"): "breadcrumbs",
    ("ties", "magnitude"): "ties",
    ("ties", "dare"): "dare_ties",
    ("ties", "della"): "della",
    ("ties", "breadcrumbs"): "breadcrumbs_ties",
}
"""Method that keeps everything, and sparsifier → the method that is both."""


def as_one_method(merge: Merge) -> Merge | None:
    """Write a sparsifier and a method as the one method that is both; None where there is none.

    Such are the products of TIES, if it trims nothing itself, and of task arithmetic.
    """
    assert merge.sparsifier is not None
    given = merge.sparsifier.model_dump(exclude={"kind"})
    name = _PRODUCTS.get((merge.method, merge.sparsifier.kind))
    if name is None or _trims(merge):
        return None
    known = find_method(name, "recipe").parameters
    own = {key: value for key, value in given.items() if known[key].per_expert}
    rest = {key: value for key, value in given.items() if key not in own}
    if any(value not in known[key].choices for key, value in rest.items()):
        return None
    changed = {
        "method": name,
        "experts": {expert: {**values, **own} for expert, values in merge.experts.items()},
        "parameters": {**merge.parameters, **rest},
        "drop": None,
        "sparsify": None,
    }
    return merge.model_copy(update=changed)


def _trims(merge: Merge) -> bool:
    """Tell whether the method drops small entries itself."""
    density = find_method(merge.method, "recipe").parameters.get("density")
    if density is None:
        return False
    return any(values.get("density", density.default) != 1 for values in merge.experts.values())
