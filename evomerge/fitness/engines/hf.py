"""Engine `hf` answers with a resident transformers model, in the worker's own process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import override

from evomerge.fitness.engines import Engine, EngineContext, Response, engine
from evomerge.recipe import MergeCoefficient, Recipe

if TYPE_CHECKING:
    import numpy as np
    from lm_eval.api.instance import Instance

    from evomerge.fitness.document_loss import DocumentLoss
    from evomerge.fitness.expert_answers import ExpertAnswers, Question
    from evomerge.materialize.disk.weight_record import WeightsRecord


@engine("hf")
class HuggingFace(Engine):
    """A transformers model in the worker; candidates are written into it in place.

    Args:
        batch_tokens: the number of tokens of one forward pass; where it is not given, 4096 on CPU,
            and on a GPU what its memory holds. Lower it where other programs use the GPU.

    Example: `kind: hf, batch_tokens: 8192`
    """

    differentiable = True

    def __init__(
        self, context: EngineContext, *, batch_tokens: Annotated[int, Field(ge=1)] | None = None
    ) -> None:
        super().__init__(context)
        import torch

        from evomerge.fitness.inference.local_model import Local, make_lm
        from evomerge.materialize.memory.resident import Resident
        from evomerge.models.tokens.tokenizer import load_tokenizer

        config, base = context.config, context.base
        trusted = config.models.trust_remote_code
        compute, parallel = getattr(torch, context.compute), config.workers.spreads
        self._resident = Resident(base.layout, context.kernel, compute, trusted, parallel)
        tokenizer = load_tokenizer(base.tokenizer_folder, trust_remote_code=trusted)
        lm = make_lm(self._resident.model, tokenizer, config.fitness.batch_size)
        self._local = Local(lm, batch_tokens or context.facts.get("batch_tokens"))
        self.lm: Any = lm
        known = context.facts.get("gradient_tokens")
        self._backward = self._local.backward(base.layout.prefix, known)

    @override
    def load(self, recipe: Recipe) -> None:
        self._resident.write(recipe)

    @override
    def weights(self, recipe: Recipe) -> WeightsRecord:
        return self._resident.record(recipe)

    @override
    def prepare(self, requests: Sequence[Instance]) -> None:
        self._local.prepare(requests)

    @override
    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        return self._local.answer(requests, counted)

    @override
    def gradient(
        self, recipe: Recipe, documents: Sequence[tuple[DocumentLoss, float]]
    ) -> tuple[np.ndarray, Mapping[MergeCoefficient, float]]:
        from torch.nn import Parameter

        from evomerge.materialize.gradients import CoefficientGradients

        found = CoefficientGradients(self.context.kernel, recipe)
        sinks = [
            (weight, partial(found.add, step))
            for weight, step in self._resident.written
            if isinstance(weight, Parameter) and found.has_gradient(step)
        ]
        losses = self._backward(documents, sinks)
        return losses, found.sums()

    @override
    def losses(self, documents: Sequence[DocumentLoss]) -> np.ndarray:
        return self._backward.losses(documents)

    @override
    def expert_answers(self, prompts: Sequence[str], question: Question) -> ExpertAnswers:
        return self._local.expert_answers(prompts, question, self.context.base.layout.prefix)

    @property
    @override
    def reuse(self) -> Mapping[str, int]:
        return self._resident.reuse

    @property
    @override
    def facts(self) -> Mapping[str, int]:
        # As measured, or as memory left it; of a backward pass once there was one.
        backward = self._backward.tokens
        return {
            "batch_tokens": self._local.budget.tokens,
            **({} if backward is None else {"gradient_tokens": backward}),
        }
