"""Calibration data that a recipe's merges need, of which sources, and whether it is at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evomerge.common.errors import InputError
from evomerge.methods.core.aim import AIM_KIND
from evomerge.methods.core.registry import find_method
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.recipe.recipe import BASE, Merge, Recipe, merge_name

CROSS = "cross"
"""The kind of calibration data that is of several models together."""
NAMED = {
    "fisher": "the Fisher statistics",
    "gram": "the Gram matrices",
    "gtheta": "the gradients times weights (gtheta)",
    "mean_abs": "the mean activations (mean_abs)",
    "router": "the statistics of routers (router)",
    "sens": "the sensitivities (sens)",
    "cross": "the cross Gram matrices",
}
"""Kind of calibration data → its name in messages."""


class Calibration(Protocol):
    """A calibration file, as far as a recipe is about it."""

    @property
    def head(self) -> Any:
        """What the file says of itself; `kinds` among it."""

    @property
    def digest(self) -> str:
        """The digest of its content."""


def needs_of(merge: Merge) -> dict[str, list[str]]:
    """Return source → kinds of calibration data that a merge needs of it."""
    kinds = list(find_method(merge.method, f"recipe: {merge_name(merge)}").calibrated)
    if merge.sparsifier is not None:
        kinds += sparsifiers()[merge.sparsifier.kind].calibrated
    found = {name: list(dict.fromkeys(kinds)) for name in merge.experts if kinds}
    if merge.aim is not None:
        found[BASE] = [AIM_KIND]
    return found


def with_calibration(recipe: Recipe, digests: Mapping[str, str]) -> Recipe:
    """Write the digests of the calibration files that a recipe needs into it.

    Args:
        recipe: whose merges may need some.
        digests: source name → digest of its calibration file, of those that have one.
    """
    needed = {name for merge in recipe.merges for name in needs_of(merge)}
    if recipe.mixture is not None and recipe.mixture.groups == "router":
        needed.add(BASE)
    own = {name: digests[name] for name in recipe.sources if name in needed and name in digests}
    return recipe if own == recipe.calibration else recipe.model_copy(update={"calibration": own})


def check_calibrated(recipe: Recipe, files: Mapping[str, Calibration | None]) -> None:
    """Refuse a recipe whose calibration data are gone, or others.

    Args:
        recipe: to be merged.
        files: source name → its calibration file, if there is one.

    Raises:
        InputError: names the merge, the source and the way to make the file.
    """
    for merge in recipe.merges:
        for name, kinds in needs_of(merge).items():
            where = f"recipe: {merge_name(merge)}: {merge.method}"
            check_kinds(name, kinds, files.get(name), where, recipe.calibration.get(name))
        if CROSS in find_method(merge.method, "recipe").calibrated:
            merged = {name: recipe.sources[name] for name in merge.experts}
            check_together(merged, files, f"recipe: {merge_name(merge)}: {merge.method}")
    if recipe.mixture is not None and recipe.mixture.groups == "router":
        where, known = "recipe: mixture: groups: router", recipe.calibration.get(BASE)
        check_kinds(BASE, ["router"], files.get(BASE), where, known)
    for name, digest in recipe.calibration.items():
        file = files.get(name)
        if file is not None and file.digest != digest:
            raise InputError(
                f"recipe: was made with other calibration data of {name!r} (digest {digest}) than "
                f"those given (digest {file.digest}); name that file in models.statistics, or "
                "search again with these"
            )


def check_kinds(
    name: str,
    kinds: Sequence[str],
    file: Calibration | None,
    where: str,
    digest: str | None = None,
) -> None:
    """Refuse a source without the calibration data that a merge needs of it.

    Args:
        name: the source's.
        kinds: that are needed.
        file: its calibration file.
        where: begins the message.
        digest: of the file that a recipe was made with.

    Raises:
        InputError: a kind is lacking; names the source and the way to make it.
    """
    for kind in kinds:
        if file is None or kind not in file.head.kinds:
            known = f" (digest {digest})" if digest else ""
            option = " --kinds router" if kind == "router" else ""
            raise InputError(
                f"{where} needs {NAMED[kind]} of {name!r}{known}: make them with evomerge "
                f"calibrate{option}, and name the file in models.statistics (campaign file) or "
                f"with --statistics {name}=FILE (evomerge merge)"
            )


def check_together(
    experts: Mapping[str, str], files: Mapping[str, Calibration | None], where: str
) -> None:
    """Refuse cross Gram matrices that are of other models than those that are merged.

    Args:
        experts: name → digest of the models that are merged.
        files: source name → its calibration file, if there is one.
        where: begins the message.

    Raises:
        InputError: names the source and the way to make its file.
    """
    read = set()
    for name in experts:
        head = getattr(files.get(name), "head", None)
        read.add((head.documents, head.tokens) if head else None)
        if head is None or sorted(head.together) != sorted(experts.values()) or len(read) > 1:
            raise InputError(
                f"{where} needs the cross Gram matrices of {' and '.join(experts)} together, and "
                f"those of {name!r} are of other models or texts: remove the files, and make all "
                "with evomerge calibrate CAMPAIGN.yaml"
            )
