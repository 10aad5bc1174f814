"""The models of a campaign, each opened as what it is: a checkpoint, or an adapter on the base."""

from __future__ import annotations

from evomerge.config import ModelsConfig
from evomerge.models.adapter import is_adapter, open_adapter
from evomerge.models.checkpoint import Checkpoint, find_folder, open_checkpoint
from evomerge.recipe import BASE


def open_models(models: ModelsConfig) -> dict[str, Checkpoint]:
    """Name → model, the base first, then the experts in the campaign's order.

    Raises:
        InputError: one of them cannot be used; names it.
    """
    flags = {"allow_pickle": models.allow_pickle, "trust_remote_code": models.trust_remote_code}
    base = open_checkpoint(BASE, models.base, **flags)
    return {BASE: base} | {
        name: _open(name, spec, base, flags) for name, spec in models.experts.items()
    }


def _open(name: str, spec: str, base: Checkpoint, flags: dict[str, bool]) -> Checkpoint:
    folder = find_folder(name, spec, **flags)
    if is_adapter(folder):
        return open_adapter(name, spec, folder, base, flags)
    return open_checkpoint(name, spec, **flags)
