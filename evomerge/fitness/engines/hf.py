"""The engine in the worker's own process: a resident transformers model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from evomerge.fitness.engines import Engine, EngineContext, Response, engine
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@engine("hf")
class HuggingFace(Engine):
    """A transformers model in the worker; candidates are written into it in place.

    `batch_tokens`: of one forward pass; where it is not given, 4096 on CPU, and on a GPU what its
    memory holds.
    """

    def __init__(
        self, place: EngineContext, *, batch_tokens: Annotated[int, Field(ge=1)] | None = None
    ) -> None:
        super().__init__(place)
        import torch

        from evomerge.fitness.inference.local_model import Local, make_lm
        from evomerge.materialize.memory.resident import Resident
        from evomerge.models.checks.tokenizer import load_tokenizer

        config, base = place.config, place.base
        trusted = config.models.trust_remote_code
        compute, parallel = getattr(torch, place.compute), config.workers.spreads
        self._resident = Resident(base.layout, place.kernel, compute, trusted, parallel)
        tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        lm = make_lm(self._resident.model, tokenizer, config.fitness.batch_size)
        self._local = Local(lm, batch_tokens or place.facts.get("batch_tokens"))
        self.lm: Any = lm

    def load(self, recipe: Recipe) -> None:
        """Write the recipe into the model.

        Raises:
            InputError: the recipe does not fit the models.
            NonFiniteError: a merged tensor is not finite.
        """
        self._resident.write(recipe)

    def prepare(self, requests: Sequence[Instance]) -> None:
        """Tokenise."""
        self._local.prepare(requests)

    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """See `Local.answer`."""
        return self._local.answer(requests, counted)

    @property
    def facts(self) -> Mapping[str, int]:
        """`batch_tokens`: of one forward pass, as measured, or as memory left it."""
        return {"batch_tokens": self._local.budget.tokens}
