"""Say what an engine is and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from evomerge.config import CampaignConfig
from evomerge.fitness.answers import RequestAnswerer, Response
from evomerge.recipe import MergeCoefficient, Recipe

if TYPE_CHECKING:
    import numpy as np
    from lm_eval.api.instance import Instance

    from evomerge.fitness.document_loss import DocumentLoss
    from evomerge.fitness.expert_answers import ExpertAnswers, Question
    from evomerge.materialize.disk.weight_record import WeightsRecord
    from evomerge.materialize.kernel import Kernel
    from evomerge.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class EngineContext:
    """Holds what a worker offers its engine.

    Attributes:
        config: the campaign.
        base: the base model.
        kernel: makes tensors of recipes, on the worker's device.
        compute: the dtype of scoring, by torch's name.
        write: writes a recipe as a checkpoint into a folder that must not exist or be empty.
        facts: `Engine.facts` of the campaign's earlier runs.
    """

    config: CampaignConfig
    base: Checkpoint
    kernel: Kernel
    compute: str
    write: Callable[[Recipe, Path], Path]
    facts: Mapping[str, int]


class Engine(RequestAnswerer, ABC):
    """Answers requests with the candidate that was loaded last.

    Attributes:
        here: whether the model that answers is in the worker's own memory.
        differentiable: whether it has `gradient`, `losses` and `expert_answers`.
        context: what the worker offers.
    """

    here: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    def __init__(self, context: EngineContext) -> None:
        self.context = context

    @abstractmethod
    def load(self, recipe: Recipe) -> None:
        """Make the recipe the one that answers.

        Raises:
            CandidateError: it cannot be materialized.
            InputError: no recipe can, for a reason that lies outside them.
        """

    @override
    @abstractmethod
    def prepare(self, requests: Sequence[Instance]) -> None: ...

    @override
    @abstractmethod
    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]: ...

    def gradient(
        self, recipe: Recipe, documents: Sequence[tuple[DocumentLoss, float]]
    ) -> tuple[np.ndarray, Mapping[MergeCoefficient, float]]:
        """Differentiate Σ factor · loss in the coefficients of the recipe that was loaded last.

        Returns:
            The losses, float64 [documents], and the derivatives by coefficient.

        Raises:
            CandidateError: a loss is not finite.
        """
        raise NotImplementedError

    def losses(self, documents: Sequence[DocumentLoss]) -> np.ndarray:
        """Return the losses of documents, float64 [documents], under the recipe loaded last.

        Raises:
            CandidateError: one is not finite.
        """
        raise NotImplementedError

    def expert_answers(self, prompts: Sequence[str], question: Question) -> ExpertAnswers:
        """Let the recipe that was loaded last, an expert, answer prompts.

        Raises:
            CandidateError: what it says is not finite.
        """
        raise NotImplementedError

    def weights(self, recipe: Recipe) -> WeightsRecord | None:
        """Record the weights that answer, those of the recipe that was loaded last.

        None where the engine cannot know them. An export is compared with the record.
        """
        return None

    @property
    def facts(self) -> Mapping[str, int]:
        """Facts that it found out about itself: recorded, and given back on resume."""
        return {}

    @property
    def reuse(self) -> Mapping[str, int]:
        """Count the weights of the recipe loaded last, and those that needed no merging.

        Keys: `tensors`, `parameters` (their entries), `tensors kept`, `parameters kept`; empty
        where the engine keeps none.
        """
        return {}

    @classmethod
    def check(cls, config: CampaignConfig, kinds: Mapping[str, str], options: Any) -> None:
        """Refuse, before any model is built, a campaign that the engine cannot score.

        Args:
            kinds: task → lm-eval's output type, or `callable`.
            options: the engine's own, checked; those left at their defaults are not among them,
                here and below.

        Raises:
            InputError: names the key.
        """
        return None

    @classmethod
    def identity(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say what must not change when a study is resumed; nothing for the stock engine."""
        return {}

    @classmethod
    def has_template(cls, options: Mapping[str, Any]) -> bool:
        """Say whether chats are put together without the base's chat template."""
        return False
