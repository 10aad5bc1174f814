"""Scoring engines: what answers a campaign's requests with a candidate, one file each.

An engine is a class in a file of this folder under `@engine("name")`, in another package's entry
point of the group `evomerge.engines`, or `module:Class` in the campaign file. Its constructor takes
an `EngineContext` and then keyword-only options, whose annotations and defaults are the schema of
the campaign file's `fitness.engine` section. Torch is imported inside, so that listing stays quick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from evomerge.common.plugins import Registry, check_options, subclass_of
from evomerge.config import CampaignConfig
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from evomerge.materialize.kernel import Kernel
    from evomerge.models.checkpoint import Checkpoint


class Response(NamedTuple):
    """What lm-eval's method of the request's type returns, and the length of a generated answer."""

    value: Any
    tokens: int | None = None


class RequestAnswerer(Protocol):
    """Answers lm-eval's requests.

    Attributes:
        lm: lm-eval's own object for the model, from which tasks take chat template and limits.
    """

    lm: Any

    def prepare(self, requests: Sequence[Instance]) -> None:
        """Do once what no candidate changes, such as tokenising.

        Raises:
            InputError: a request cannot be answered, whatever the candidate.
        """

    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """The responses, in the order of the requests.

        Args:
            counted: with the lengths of generated answers.

        Raises:
            CandidateError: the candidate cannot answer.
            InputError: a request cannot be answered, whatever the candidate.
        """


@dataclass(frozen=True)
class EngineContext:
    """What a worker offers its engine.

    Attributes:
        config: the campaign.
        base: the base model.
        kernel: makes tensors of recipes, on the worker's device.
        compute: the dtype of scoring, by torch's name.
        write: writes a recipe as a checkpoint into a folder that must not exist or be empty.
        facts: what engines of earlier runs of the campaign said of themselves.
    """

    config: CampaignConfig
    base: Checkpoint
    kernel: Kernel
    compute: str
    write: Callable[[Recipe, Path], Path]
    facts: Mapping[str, int]


class Engine(ABC):
    """Answers requests with the candidate that was loaded last; an `RequestAnswerer`."""

    lm: Any
    here: ClassVar[bool] = True
    """Whether the model that answers is in the worker's own memory."""

    def __init__(self, place: EngineContext) -> None:
        self.place = place

    @abstractmethod
    def load(self, recipe: Recipe) -> None:
        """Make the recipe the one that answers.

        Raises:
            CandidateError: it cannot be materialized.
            InputError: no recipe can, for a reason that lies outside them.
        """

    @abstractmethod
    def prepare(self, requests: Sequence[Instance]) -> None:
        """See `RequestAnswerer`."""

    @abstractmethod
    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """See `RequestAnswerer`."""

    @property
    def facts(self) -> Mapping[str, int]:
        """What it found out about itself that is worth recording, and using on resume."""
        return {}

    @classmethod
    def check(cls, config: CampaignConfig, kinds: Mapping[str, str], options: Any) -> None:
        """Refuse, before any model is built, a campaign that the engine cannot score.

        Args:
            kinds: task → lm-eval's output type, or `callable`.
            options: the engine's own, checked; here and below without those left at their defaults.

        Raises:
            InputError: names the key.
        """
        return None

    @classmethod
    def identity(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What must not change when a study is resumed; nothing for the stock engine."""
        return {}

    @classmethod
    def has_template(cls, options: Mapping[str, Any]) -> bool:
        """Whether chats are put together without the base's chat template."""
        return False


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
    """See that there is the campaign's engine, with these options, and that it can score the tasks.

    `kinds`: see `Engine.check`.

    Raises:
        InputError: there is none, an option is unknown or of the wrong type, or it cannot.
    """
    kind, options = _found(config)
    kind.check(config, kinds, options)


def engine_identity(config: CampaignConfig) -> Mapping[str, Any]:
    """See `Engine.identity`."""
    kind, options = _found(config)
    return kind.identity(options)


def has_template(config: CampaignConfig) -> bool:
    """See `Engine.has_template`."""
    kind, options = _found(config)
    return kind.has_template(options)


def scores_here(config: CampaignConfig) -> bool:
    """See `Engine.here`."""
    kind, _ = _found(config)
    return kind.here


def build_engine(place: EngineContext) -> Engine:
    """The engine that the campaign names.

    Raises:
        InputError: as `check_engine`, or the engine cannot be built here.
    """
    kind, options = _found(place.config)
    return kind(place, **options)


def _found(config: CampaignConfig) -> tuple[type[Engine], dict[str, Any]]:
    wanted = config.fitness.engine
    kind = REGISTRY.find(wanted.kind, "fitness.engine.kind")
    return kind, check_options(kind, wanted.options, "fitness.engine", of=wanted.kind)
