"""The models of a campaign, each opened as what it is."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.config import ModelsConfig
from evomerge.models.alignment import Aligned, Alignment
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.recipe import BASE


def open_models(
    models: ModelsConfig, alignments: Mapping[str, Alignment] | None = None
) -> dict[str, Checkpoint]:
    """Name → model, the base first, then the experts in the campaign's order.

    Args:
        alignments: those already known of the experts that `models.align` names.

    Raises:
        InputError: one of them cannot be used; names it.
    """
    flags = {"allow_pickle": models.allow_pickle, "trust_remote_code": models.trust_remote_code}
    base = open_checkpoint(BASE, models.base, **flags)
    experts = {name: open_checkpoint(name, spec, **flags) for name, spec in models.experts.items()}
    for name in dict.fromkeys(models.align):
        experts[name] = Aligned(experts[name], base, (alignments or {}).get(name))
    return {BASE: base, **experts}


def alignments_of(sources: Mapping[str, Checkpoint]) -> dict[str, Alignment]:
    """The permutations of the aligned models among these, for others to open them with."""
    return {name: s.alignment for name, s in sources.items() if isinstance(s, Aligned)}
