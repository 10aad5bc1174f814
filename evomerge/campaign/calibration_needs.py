"""Calibration data that a campaign's methods and priors need, and whether its models have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evomerge.common.errors import InputError
from evomerge.config import CampaignConfig, PriorStart, SpaceConfig, Start
from evomerge.fitness.calibration.texts import Text
from evomerge.methods import find_method
from evomerge.methods.core.aim import AIM_KIND
from evomerge.methods.core.calibration_in_recipes import CROSS, check_kinds, check_together
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.checks.digests import calibration_digests
from evomerge.recipe import BASE


def needed_kinds(config: CampaignConfig) -> dict[str, Sequence[str]]:
    """Return model → kinds of statistics that the campaign's merges need of it, in its order."""
    found: dict[str, dict[str, None]] = {name: {} for name in (BASE, *config.models.experts)}
    searches = [(config.space, config.initial), *((s.space, s.initial) for s in config.stages)]
    for space, initial in searches:
        for _, of_base, kind in _needs(space, initial):
            for name in [BASE] if of_base else config.models.experts:
                found[name][kind] = None
    return {name: tuple(kinds) for name, kinds in found.items() if kinds}


def check_needs(config: CampaignConfig, sources: Mapping[str, Checkpoint]) -> None:
    """Refuse merges and priors that need calibration data of models that have none.

    Raises:
        InputError: names the key, the model and the way to make a file.
    """
    files = {name: source.calibration for name, source in sources.items()}
    for where, of_base, kind in _needs(config.space, config.initial):
        for name, file in files.items():
            if (name == BASE) is of_base:
                check_kinds(name, [kind], file, where)
    crossed = [where for where, _, kind in _needs(config.space, ()) if kind == CROSS]
    if crossed:
        experts = [name for name in sources if name != BASE]
        check_crossed(config, experts)
        digests = {name: sources[name].digest for name in experts}
        check_together(digests, files, crossed[0])


def check_crossed(
    config: CampaignConfig, names: Sequence[str], texts: Mapping[str, Sequence[Text]] | None = None
) -> None:
    """Refuse cross Gram matrices of models that cannot read the same tokens.

    Args:
        names: the models whose matrices are wanted.
        texts: of each model; None where their files are there already.

    Raises:
        InputError: says what stands in the way.
    """
    way = "cross Gram matrices (pleas) are of all experts on the same tokens; leave "
    if BASE in names:
        raise InputError(f"--source base: {way}the base out")
    if config.models.tokenizer is not None:
        raise InputError(f"models.tokenizer: {way}out what gives experts other tokens")
    if config.space.weights is not None and config.space.weights.choose_experts:
        raise InputError(f"space.weights.choose_experts: {way}it out, or the method pleas")
    given = texts or {}
    read = [[text.text for text in given[name]] for name in config.models.experts if name in given]
    if any(own != read[0] for own in read[1:]):
        raise InputError(
            f"calibration.per_expert: {way}it out, and give documents or a task for all of them"
        )


def needed_digests(config: CampaignConfig, sources: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Return model → digest of its calibration file, of those that the merges need."""
    needed = set(needed_kinds(config))
    return {name: d for name, d in calibration_digests(sources).items() if name in needed}


PRIORS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "sens": ([], ["sens"]),
    "fim": (["fisher"], []),
    "lewis": (["gram"], ["gram"]),
    "wsm": ([], []),
}
"""Prior → kinds of statistics that it needs of the base, and of every expert."""


def _needs(space: SpaceConfig, initial: Sequence[Start]) -> Iterator[tuple[str, bool, str]]:
    """Yield what asks for data, whether it is of the base, else of every expert, and its kind."""
    for place, start in enumerate(initial):
        if isinstance(start, PriorStart):
            for kinds, of_base in zip(PRIORS[start.prior], (True, False), strict=True):
                for kind in kinds:
                    yield f"initial[{place}]: the prior {start.prior}", of_base, kind
    if space.mixture is not None and space.mixture.groups == "router":
        yield "space.mixture.groups: router", True, "router"
    weights = space.weights
    if weights is None:
        return
    key = "space.weights"
    for name in weights.methods:
        for kind in find_method(name, f"{key}.method").calibrated:
            yield f"{key}.method: {name}", False, kind
    if weights.sparsify is not None:
        for kind in sparsifiers()[weights.sparsify.kind].calibrated:
            yield f"{key}.sparsify: {weights.sparsify.kind}", False, kind
    if weights.aim is not None:
        yield f"{key}.aim: AIM", True, AIM_KIND
