"""From the campaign file's `optimizer` section to an optimizer."""

from __future__ import annotations

from evomerge.common.plugins import check_options
from evomerge.config import OptimizerConfig
from evomerge.search.optimizers.base import REGISTRY, Optimizer
from evomerge.search.optimizers.parts.screening import Screened
from evomerge.search.spaces.genes import Domain


def build_optimizer(config: OptimizerConfig, domain: Domain, seed: int) -> Optimizer:
    """Build the optimizer that a campaign file names, its options checked, screened if it says so.

    Raises:
        InputError: no such optimizer, an unknown option, or an option's value of the wrong type, or
            an optimizer that cannot be screened.
    """
    kind = REGISTRY.find(config.kind, "optimizer.kind")
    options = check_options(kind, config.options, "optimizer", of=config.kind)
    built = kind(domain, seed, **options)
    return built if config.screen == 1 else Screened(built, config.screen)
