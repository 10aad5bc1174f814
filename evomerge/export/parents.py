"""The models of which a merge was made, and the licences that they state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.common.data_files import read_text, yaml_data
from evomerge.common.errors import InputError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.recipe import BASE, Recipe

UNSTATED = "not stated"


@dataclass(frozen=True)
class Parent:
    """One source of a recipe.

    Attributes:
        name: as the recipe calls it.
        spec: folder or hub id, as the user named it.
        hub_id: `org/model` without its revision, for a model from the hub; else None.
        licence: what its model card says, else the name of a licence file, else `UNSTATED`.
    """

    name: str
    spec: str
    hub_id: str | None
    licence: str
    digest: str


def parents_of(recipe: Recipe, models: CheckedModels) -> list[Parent]:
    """Return the base and the experts that the recipe uses, in its order."""
    names = [BASE, *recipe.active_experts()]
    return [_parent(models.sources[name]) for name in names]


def licence_of(folder: Path) -> str:
    """Return the licence that a model's folder states, else `UNSTATED`."""
    card = _front_matter(folder / "README.md")
    stated = card.get("license_name") or card.get("license")
    if stated:
        return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
    return next(_licence_files(folder), UNSTATED)


def _parent(source: Checkpoint) -> Parent:
    local = Path(source.spec).is_dir()
    return Parent(
        name=source.name,
        spec=source.spec,
        hub_id=None if local else source.spec.partition("@")[0],
        licence=licence_of(source.folder),
        digest=source.digest,
    )


def _front_matter(card: Path) -> dict[str, Any]:
    """Return the YAML with which a model card begins; {} where there is none."""
    try:
        text = read_text(card)
        data = yaml_data(text.split("---", 2)[1], str(card)) if text.startswith("---") else None
    except (InputError, IndexError):
        return {}
    return data if isinstance(data, dict) else {}


def _licence_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.stem.upper() in ("LICENSE", "LICENCE", "COPYING"):
            yield f"see its {path.name}"
