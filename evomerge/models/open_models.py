"""Open a campaign's models: checkpoints, text models of multimodal ones, adapters on the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.common.errors import InputError
from evomerge.config import ModelsConfig
from evomerge.models.adapter import is_adapter, open_adapter
from evomerge.models.alignment.git_rebasin import Aligned, Alignment
from evomerge.models.calibrations import attach_calibrations
from evomerge.models.checkpoint import Checkpoint, find_folder, load_config, open_checkpoint
from evomerge.models.known_models import recall_model
from evomerge.models.messages import campaign_key
from evomerge.models.multimodal import is_multimodal, open_text_model
from evomerge.models.tokens.matching import as_unmatched, match_vocabularies
from evomerge.recipe import BASE


def open_models(
    models: ModelsConfig, alignments: Mapping[str, Alignment] | None = None
) -> dict[str, Checkpoint]:
    """Open every model; no weights are read.

    Args:
        alignments: expert → its permutations, where they are known already; those of the other
            experts in `models.align` are found when they are first needed.

    Returns:
        name → model, the base first, then the experts in the campaign's order.

    Raises:
        InputError: a model cannot be used; names it.
    """
    flags = {"allow_pickle": models.allow_pickle, "trust_remote_code": models.trust_remote_code}
    folder = find_folder(BASE, models.base, **flags)
    base = _open_whole(BASE, models.base, folder, flags)
    experts = {name: _open(name, spec, base, flags) for name, spec in models.experts.items()}
    for name in dict.fromkeys(models.align):
        experts[name] = Aligned(experts[name], base, (alignments or {}).get(name))
    opened = {BASE: base, **experts}
    if models.tokenizer is not None:
        opened = match_vocabularies(opened, models.tokenizer, models.trust_remote_code)
    attach_calibrations(opened, models.statistics)
    return opened


def open_model(
    spec: str, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Checkpoint:
    """Open one model that stands alone; messages show it by its spec.

    Raises:
        InputError: it cannot be used, or is an adapter, which needs a base.
    """
    flags = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    try:
        folder = find_folder(BASE, spec, **flags)
        return _open_whole(BASE, spec, folder, flags)
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{campaign_key(BASE)}: ")) from None


def as_stored(source: Checkpoint) -> Checkpoint:
    """Return a model without its alignment, with its own vocabulary."""
    own = as_unmatched(source)
    return own.unaligned if isinstance(own, Aligned) else own


def alignments_of(sources: Mapping[str, Checkpoint]) -> dict[str, Alignment]:
    """Return the permutations of the aligned models, for other processes to open them with."""
    own = {name: as_unmatched(source) for name, source in sources.items()}
    return {name: s.alignment for name, s in own.items() if isinstance(s, Aligned)}


def _open(name: str, spec: str, base: Checkpoint, flags: dict[str, bool]) -> Checkpoint:
    folder = find_folder(name, spec, **flags)
    if is_adapter(folder):
        return open_adapter(name, spec, folder, base, flags)
    return _open_whole(name, spec, folder, flags)


def _open_whole(name: str, spec: str, folder: Path, flags: dict[str, bool]) -> Checkpoint:
    if recall_model(folder, flags) is not None:  # a plain language model
        return open_checkpoint(name, spec, **flags)
    try:
        config = load_config(folder, flags["trust_remote_code"])
    except InputError as error:
        raise InputError(f"{campaign_key(name)}: {error}") from None
    if is_multimodal(config):
        return open_text_model(name, spec, folder, flags)
    return open_checkpoint(name, spec, **flags)
