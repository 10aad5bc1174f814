"""The pieces into which a campaign cuts tensors, by how far the experts move them.

They are found once, when a study begins, and are then the study's: whoever goes on with it has the
same genes. Source: Expert Merging++, Zhang et al. 2025, arXiv:2509.25712.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from evomerge.common.errors import InputError
from evomerge.common.one_thread import one_thread
from evomerge.config import CampaignConfig
from evomerge.materialize.statistics.grams import slices_of
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.models.layout import TensorSpec
from evomerge.models.source import Source
from evomerge.recipe import BASE
from evomerge.search.spaces.granularity import pieces_by_importance
from evomerge.search.spaces.weights import WeightSpace
from evomerge.study.run_folder import open_study_of
from evomerge.study.study import PIECES

WHERE = "space.weights.chunks"


def pieces_of(
    config: CampaignConfig,
    models: CheckedModels,
    folder: Path | None = None,
    known: Mapping[str, int] | None = None,
) -> Mapping[str, int]:
    """Return label of a group → number of its tensors' pieces; empty where the campaign has none.

    Args:
        config: the campaign.
        models: its sources; all weights are read once, unless the pieces are known.
        folder: the run's; pieces that its study was begun with are not found again.
        known: of the same space of the same models; taken where there is no such study.

    Raises:
        InputError: a method that cannot merge pieces, or weights that are not finite.
    """
    if config.space.weights is None or config.space.weights.chunks is None:
        return {}
    begun = None if folder is None else _begun_with(config, folder)
    return begun or known or _found(config, models)


def notes_of(config: CampaignConfig, pieces: Mapping[str, int], read: bool) -> list[str]:
    """Say how many tensors have how many pieces; nothing where a campaign cuts none.

    Args:
        config: the campaign.
        pieces: as `pieces_of`.
        read: the models' weights are here; else importance is a guess.
    """
    if not pieces:
        return []
    counts = [count for count in pieces.values() if count]
    most = max(pieces, key=lambda label: pieces[label])
    guess = "" if read else "; by tensors' sizes, for the weights that decide it are not here"
    return [
        f"{WHERE}: {len(counts)} of {len(pieces)} tensors have genes, in {sum(counts)} pieces, up "
        f"to {pieces[most]} ({most}); the other {len(pieces) - len(counts)} stay as in the "
        f"uniform merge{guess}"
    ]


def _begun_with(config: CampaignConfig, folder: Path) -> Mapping[str, int] | None:
    """The pieces that a study was begun with; None where there is no study."""
    try:
        with open_study_of(config, folder) as study:
            return study.note(PIECES)
    except InputError:
        return None


def _found(config: CampaignConfig, models: CheckedModels) -> dict[str, int]:
    """Find each tensor's importance I_l = Σ_k |α_k| ‖τ_k‖₁, and deal the budget by it."""
    weights = config.space.weights
    assert weights is not None
    assert weights.chunks is not None
    # 1. α_k: where the uncut space begins
    sources = models.sources
    digests = dict.fromkeys(sources, "")
    space = WeightSpace(config.space, models.layout, digests, config.seed)
    merges = space.decode(space.initial).merges
    importance: dict[str, float] = {}
    entries: dict[str, int] = {}
    for group, merge in zip(space.groups, merges, strict=True):
        # 2. mean|τ_k| n_l is the L1 norm, of all tensors of the group
        tensors = group.tensors(models.layout)
        entries[group.label] = max((math.prod(spec.shape) for spec in tensors), default=0)
        importance[group.label] = math.fsum(
            abs(values.get("weight", 1.0)) * _length(spec, sources, name, models.configs_only)
            for spec in tensors
            for name, values in merge.experts.items()
        )
    # 3. m_l, and no more than `torch.chunk` makes of so many entries
    chunks = weights.chunks
    found = pieces_by_importance(importance, chunks.budget, chunks.power)
    return {label: _chunks(entries[label], count) for label, count in found.items()}


def _chunks(entries: int, count: int) -> int:
    """Return how many pieces `torch.chunk` makes of a flat tensor that is to have `count`."""
    return -(-entries // -(-entries // count)) if count and entries else 0


def _length(spec: TensorSpec, sources: Mapping[str, Source], name: str, guess: bool) -> float:
    """Return ‖τ‖₁ of an expert's tensor, in float64; without weights its number of entries."""
    if guess:
        return float(math.prod(spec.shape))
    pair = {BASE: sources[BASE], name: sources[name]}
    parts = []
    for own in slices_of(pair, [spec]):
        with one_thread():
            parts.append(float((own[1] - own[0]).abs().sum()))
    found = math.fsum(parts)
    if not math.isfinite(found):
        raise InputError(
            f"{WHERE}: {spec.name} of {name}, or of the base, is not finite, so that its "
            "importance is unknown; use other models, or leave chunks out"
        )
    return found
