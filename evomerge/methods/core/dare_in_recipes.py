"""DARE over any method of task vectors, as a recipe made of another."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.common.errors import InputError
from evomerge.methods import Method, find_method
from evomerge.recipe.recipe import Drop, Merge, Recipe, merge_name


def dropped(recipe: Recipe, density: Callable[[Merge], float], rescale: str, seed: int) -> Recipe:
    """The recipe with the task vectors of every merge thinned out before they are merged.

    Args:
        density: a merge's; at 1 the merge stays what it was.
        rescale: as in `Drop`.
        seed: keys the masks, where there are any.

    Raises:
        InputError: a merge's method has no task vectors, or draws at random itself.
    """
    merges = [_with_drop(merge, density(merge), rescale) for merge in recipe.merges]
    if all(merge.drop is None for merge in merges):
        return recipe
    return recipe.model_copy(update={"merges": tuple(merges), "seed": seed})


def _with_drop(merge: Merge, density: float, rescale: str) -> Merge:
    if density == 1:
        return merge
    where = f"recipe: {merge_name(merge)}: drop"
    check_droppable(find_method(merge.method, where), where)
    drop = Drop.model_validate({"density": density, "rescale": rescale})
    return merge.model_copy(update={"drop": drop})


def check_droppable(method: Method, where: str) -> None:
    """Refuse a method whose experts' task vectors cannot be thinned out first.

    Raises:
        InputError: it has no task vectors, or draws at random itself; begins with `where`.
    """
    if "lambda" not in method.parameters:
        raise InputError(
            f"{where}: {method.name} has no task vectors to drop entries of; use a method of task "
            "vectors, such as task_arithmetic for linear"
        )
    if method.needs_position:
        raise InputError(
            f"{where}: {method.name} drops entries at random itself; use its own density, or a "
            "method without masks, such as task_arithmetic or ties"
        )


def as_dare_method(merge: Merge) -> Merge | None:
    """A merge with a drop as one by a method that drops itself; None where none does the same.

    Over task arithmetic it is `dare_linear`, over TIES that trims nothing `dare_ties`.
    """
    assert merge.drop is not None
    name = {"task_arithmetic": "dare_linear", "ties": "dare_ties"}.get(merge.method)
    if name is None or merge.drop.rescale == "none" or _trims(merge):
        return None
    given = {"density": merge.drop.density}
    experts = {expert: {**values, **given} for expert, values in merge.experts.items()}
    parameters = {**merge.parameters, "rescale": merge.drop.rescale}
    changed = {"method": name, "experts": experts, "parameters": parameters, "drop": None}
    return merge.model_copy(update=changed)


def _trims(merge: Merge) -> bool:
    """Whether the method drops small entries."""
    density = find_method(merge.method, "recipe").parameters.get("density")
    if density is None:
        return False
    return any(values.get("density", density.default) != 1 for values in merge.experts.values())
