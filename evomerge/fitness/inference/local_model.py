"""Answers lm-eval requests with a model in this process, by the own paths where they apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.fitness.engines import Response
from evomerge.fitness.inference.batch import PassShape
from evomerge.fitness.inference.forward import Forward
from evomerge.fitness.inference.generation import Greedy
from evomerge.fitness.inference.loglikelihood import LogLikelihoods
from evomerge.fitness.inference.memory import Budget, ran_out_of_memory
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.response_tokens import counted_responses, response_length


def make_lm(model: Any, tokenizer: Any, batch_size: int) -> HFLM:
    """Wrap a resident `PreTrainedModel` and its tokenizer for lm-eval.

    Log-probabilities are computed in float32 whatever the model's dtype: in bfloat16 close choices
    tie. A stock run gives the same scores with `--model_args ...,softmax_dtype=float32`.

    Args:
        model: a causal language model; candidates are written into it in place.
        tokenizer: its tokenizer; gets a pad token from lm-eval if it has none.
        batch_size: rows generated at once.
    """
    with quiet():
        return HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",
        )


class Local:
    """Answers with the present weights of the model inside `lm`."""

    def __init__(self, lm: HFLM, tokens: int | None = None) -> None:
        """`tokens` of one forward pass; measured where it is not given."""
        self.lm = lm
        self.budget = Budget({p.device for p in lm.model.parameters()}, tokens)
        self._forward = Forward(lm.model, lm.device)
        self._loglikelihoods = LogLikelihoods(lm, self._forward, self.budget)
        self._greedy = Greedy(lm, self._forward, self.budget, lm.batch_size)

    def prepare(self, requests: Sequence[Instance]) -> None:
        """Tokenise log-likelihood requests now, so that scoring finds them done.

        Raises:
            InputError: the model cannot score one.
        """
        for request in requests:
            if request.request_type == "loglikelihood":
                self._loglikelihoods.encode(*request.args)

    def passes(self, requests: Sequence[Instance]) -> list[PassShape]:
        """The forward passes that answer the requests, planned and not run: the model's weights
        are not needed. Generated answers are taken to be as long as they may be.

        Raises:
            InputError: the model cannot score one.
        """
        scored = [request for request in requests if request.request_type == "loglikelihood"]
        generated = [request for request in requests if request.request_type != "loglikelihood"]
        return [*self._loglikelihoods.passes(scored), *self._greedy.passes(generated)]

    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """Responses in the order of the requests, as HFLM's methods of the same name give them.

        `counted`: with the lengths of generated answers.

        Raises:
            CandidateError: a log-likelihood or a logit is not finite.
            InputError: the model cannot score a request.
        """
        ways: dict[Callable[..., list[Response]], list[int]] = {}
        cached = self._forward.packs()
        for place, request in enumerate(requests):
            ways.setdefault(self._way(request, cached), []).append(place)
        responses: dict[int, Response] = {}
        for way, places in ways.items():
            answers = way([requests[place] for place in places], counted)
            responses.update(zip(places, answers, strict=True))
        return [responses[place] for place in range(len(requests))]

    def _way(self, request: Instance, cached: bool) -> Callable[..., list[Response]]:
        """`cached`: whether the model's cache is of a kind that generation can use here."""
        if request.request_type == "loglikelihood":
            return self._scored
        own = cached and self._greedy.takes(request.args[1])
        return self._said if own else self._said_by_lm_eval

    def _scored(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        return [Response(answer) for answer in self._loglikelihoods(requests)]

    def _said(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        return [
            Response(
                answer.text,
                response_length(self.lm, answer.tokens, answer.stop) if counted else None,
            )
            for answer in self._greedy(requests)
        ]

    def _said_by_lm_eval(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        while True:
            try:
                with counted_responses(self.lm) as lengths:
                    texts = self.lm.generate_until(list(requests), disable_tqdm=True)
                answers = zip(texts, lengths, strict=True)
                return [Response(text, length if counted else None) for text, length in answers]
            except Exception as error:
                if self.lm.batch_size == 1 or not ran_out_of_memory(error):
                    raise
                rows = min(self.lm.batch_size, len(requests))
                self.lm.batch_size_per_gpu = max(1, rows // 2)
