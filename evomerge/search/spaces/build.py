"""From the campaign file's `space` section to a space."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from evomerge.common.errors import InputError
from evomerge.config import CampaignConfig, SpaceConfig, TokenizerConfig, WeightsConfig
from evomerge.models.layout import Layout
from evomerge.models.source import Source
from evomerge.recipe import BASE
from evomerge.search.spaces.mixture import BaseAlone, MixtureSpace
from evomerge.search.spaces.path_space import PathSpace
from evomerge.search.spaces.paths import MERGED, build_paths
from evomerge.search.spaces.space import Space
from evomerge.search.spaces.sparsify_and_lines import AimSpace, LinesSpace, SparsifySpace
from evomerge.search.spaces.weights import WeightSpace

if TYPE_CHECKING:
    from evomerge.models.checks.checked_models import CheckedModels


def build_space(
    config: SpaceConfig,
    layout: Layout,
    digests: Mapping[str, str],
    seed: int,
    sources: Mapping[str, Source] | None = None,
    tokenizer: TokenizerConfig | None = None,
    calibration: Mapping[str, str] = MappingProxyType({}),
    pieces: Mapping[str, int] = MappingProxyType({}),
) -> Space:
    """Build weights, paths, paths over a searched merge, or smaller mixtures, as the section says.

    Args:
        digests: source name → content digest, the base first.
        seed: keys the random masks of every recipe of this space.
        sources: read for the Grams of spherical recombination; see `WeightSpace`.
        tokenizer: how the sources' tokens were matched; every recipe says so.
        calibration: source → digest of its calibration file; recipes say those that they need.
        pieces: into how many pieces tensors are cut; see `WeightSpace`.

    Raises:
        InputError: what is named does not exist or does not fit; begins with its key.
    """
    weights = None
    if config.weights:
        own = WeightSpace(config, layout, digests, seed, sources, tokenizer, calibration, pieces)
        weights = _wrapped(config.weights, own, layout, seed, calibration)
    if config.mixture is not None:
        inner = weights or BaseAlone(layout, digests, tokenizer)
        return MixtureSpace(config.mixture, inner, layout, calibration)
    if config.path.kind == "none":
        assert weights is not None, "the config has one of the two"
        return weights
    if weights and MERGED in digests:
        raise InputError(
            f"models.experts: {MERGED!r} is what a path calls the searched merge; rename the expert"
        )
    models = [*digests, *([MERGED] if weights else [])]
    paths = build_paths(config.path, models, layout.layers)
    references = weights or WeightSpace(_plain(digests), layout, digests, seed, tokenizer=tokenizer)
    kind = config.path.kind
    return PathSpace(paths, kind, weights, references, layout, digests, tokenizer, calibration)


def space_of(
    config: CampaignConfig, models: CheckedModels, pieces: Mapping[str, int] = MappingProxyType({})
) -> Space:
    """Build the space of a campaign over its checked models; see `build_space`."""
    from evomerge.models.checks.digests import calibration_digests  # late, for it imports torch

    return build_space(
        config.space,
        models.layout,
        {name: source.digest for name, source in models.sources.items()},
        config.seed,
        models.sources,
        models.tokenizer,
        calibration_digests(models.sources),
        pieces,
    )


def _wrapped(
    config: WeightsConfig,
    weights: WeightSpace,
    layout: Layout,
    seed: int,
    calibration: Mapping[str, str],
) -> Space:
    """Wrap a space of weights in what else the section says: sparse, scaled by depth, held back."""
    sparse = config.dare or config.sparsify
    space: Space = weights
    if sparse is not None:
        space = SparsifySpace(sparse, weights, seed, calibration)
    if config.lines is not None:
        space = LinesSpace(config.lines, space, weights, layout.layers)
    return space if config.aim is None else AimSpace(config.aim, space, calibration)


def _plain(digests: Mapping[str, str]) -> SpaceConfig:
    """Describe the weights that give parents and baselines where none are searched."""
    assert BASE in digests
    weights = WeightsConfig(method="ties", granularity="model", genes={"weight": [0.0, 1.0]})
    return SpaceConfig(weights=weights)
