"""Engines answer a campaign's requests with a candidate, one file each.

An engine is a class in a file of this folder under `@engine("name")`, in another package's entry
point of the group `evomerge.engines`, or `module:Class` in the campaign file. Its constructor takes
an `EngineContext` and then keyword-only options, whose annotations and defaults are the schema of
the campaign file's `fitness.engine` section. Torch is imported inside, so that listing stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.common.errors import InputError
from evomerge.common.plugins import Registry, check_options, subclass_of
from evomerge.config import CampaignConfig
from evomerge.fitness.answers import AGREEMENT, RequestAnswerer, Response
from evomerge.fitness.engines.base import Engine, EngineContext

__all__ = [
    "Engine",
    "EngineContext",
    "RequestAnswerer",
    "Response",
    "build_engine",
    "check_engine",
    "engine",
    "engine_identity",
    "engines",
    "has_template",
    "scores_here",
]

REGISTRY = Registry[type[Engine]](
    kind="engine",
    package="evomerge.fitness.engines",
    group="evomerge.engines",
    accept=subclass_of(Engine, "evomerge.fitness.engines.Engine"),
)


def engine(name: str) -> Callable[[type[Engine]], type[Engine]]:
    """Register a class as the engine called `name` in campaign files."""
    return lambda kind: REGISTRY.add(name, kind)


def engines() -> Mapping[str, type[Engine]]:
    """Every registered engine by name, in alphabetical order."""
    return REGISTRY.all()


def check_engine(config: CampaignConfig, kinds: Mapping[str, str]) -> None:
    """Check that the campaign's engine exists, takes these options, and can score the tasks.

    Args:
        kinds: task → lm-eval's output type, `callable` or `agreement`.

    Raises:
        InputError: there is none, an option is unknown or of the wrong type, or it cannot.
    """
    kind, options = _found(config)
    compared = [task for task, own in kinds.items() if own == AGREEMENT]
    if compared and not kind.differentiable:
        raise InputError(
            f"fitness.tasks: {compared[0]} compares next tokens with an expert's, which "
            f"fitness.engine {config.fitness.engine.kind} does not show; use hf"
        )
    kind.check(config, kinds, options)


def engine_identity(config: CampaignConfig) -> Mapping[str, Any]:
    """Say what of the campaign's engine must not change when its study is resumed."""
    kind, options = _found(config)
    return kind.identity(options)


def has_template(config: CampaignConfig) -> bool:
    """Say whether the campaign's engine puts chats together without the base's chat template."""
    kind, options = _found(config)
    return kind.has_template(options)


def check_gradients(config: CampaignConfig, where: str) -> None:
    """Refuse an engine through which there is no backward pass.

    Raises:
        InputError: begins with `where` and names the engine.
    """
    kind, _ = _found(config)
    if not kind.differentiable:
        raise InputError(
            f"{where}: fitness.engine {config.fitness.engine.kind} has no backward pass; leave the "
            "gradient out, or use engine hf"
        )


def scores_here(config: CampaignConfig) -> bool:
    """Say whether the model that answers is in the worker's own memory."""
    kind, _ = _found(config)
    return kind.here


def build_engine(context: EngineContext) -> Engine:
    """Build the engine that the campaign names.

    Raises:
        InputError: as `check_engine`, or the engine cannot be built here.
    """
    kind, options = _found(context.config)
    return kind(context, **options)


def _found(config: CampaignConfig) -> tuple[type[Engine], dict[str, Any]]:
    wanted = config.fitness.engine
    kind = REGISTRY.find(wanted.kind, "fitness.engine.kind")
    return kind, check_options(kind, wanted.options, "fitness.engine", of=wanted.kind)
