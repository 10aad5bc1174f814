"""Answer lm-eval's requests with a model in this process, by our own passes where they apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.common.errors import InputError
from evomerge.fitness.answers import AGREEMENT, Response, answered_in_groups
from evomerge.fitness.expert_answers import ExpertAnswers, Question
from evomerge.fitness.inference.backward import Backward, middle_layer
from evomerge.fitness.inference.batch import PassShape
from evomerge.fitness.inference.forward import Forward
from evomerge.fitness.inference.generation import Greedy
from evomerge.fitness.inference.loglikelihood import ROLLING, LogLikelihoods
from evomerge.fitness.inference.memory import Budget, ran_out_of_memory
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.response_tokens import counted_responses, response_end


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
        """Prepare to answer.

        Args:
            lm: lm-eval's object around the model.
            tokens: most of one forward pass; where it is not given, as `Budget` has it.
        """
        self.lm = lm
        self.budget = Budget({p.device for p in lm.model.parameters()}, tokens)
        self._forward = Forward(lm.model, lm.device)
        self._loglikelihoods = LogLikelihoods(lm, self._forward, self.budget)
        self._greedy = Greedy(lm, self._forward, self.budget, lm.batch_size)

    def backward(self, layers: str, tokens: int | None) -> Backward:
        """Backward passes of the model, its tokens and batches shared with what answers requests.

        `layers`: the name of its list of layers; `tokens`: of a micro-batch, where known.
        """
        return Backward(self.lm.model, self._loglikelihoods, layers, tokens)

    def prepare(self, requests: Sequence[Instance]) -> None:
        """Tokenise log-likelihood requests now, so that scoring finds them done.

        Raises:
            InputError: the model cannot score one.
        """
        for request in requests:
            if request.request_type == "loglikelihood":
                self._loglikelihoods.encode(*request.args)
            elif request.request_type == ROLLING:
                self._loglikelihoods.encode_rolling(*request.args)
            elif request.request_type == AGREEMENT:
                self._agreement_of(request)

    def passes(self, requests: Sequence[Instance]) -> list[PassShape]:
        """The forward passes that answer the requests, planned and not run: the model's weights
        are not needed. Generated answers are taken to be as long as they may be.

        Raises:
            InputError: the model cannot score one.
        """
        generated = [request for request in requests if request.request_type == "generate_until"]
        compared = [request for request in requests if request.request_type == AGREEMENT]
        own = {"generate_until", AGREEMENT}
        scored = [request for request in requests if request.request_type not in own]
        answers = {self._agreement_of(request)[0] for request in compared}
        return [
            *self._loglikelihoods.passes(scored, answers),
            *self._greedy.passes(generated),
        ]

    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """Answer requests, in their order, as HFLM's methods of the request's type do.

        Args:
            requests: log-likelihoods, also of whole texts, and generations, in any order.
            counted: with the lengths of generated answers, and whether they were cut off.

        Raises:
            CandidateError: a log-likelihood or a logit is not finite.
            InputError: the model cannot score a request.
        """
        cached = self._forward.packs()  # whether generation can use the model's cache
        return answered_in_groups(
            requests,
            lambda request: self._way(request, cached),
            lambda way, own: way(own, counted),
        )

    def _way(self, request: Instance, cached: bool) -> Callable[..., list[Response]]:
        """Choose how a request is answered: scored, generated here, or generated by lm-eval."""
        if request.request_type == "loglikelihood":
            return self._scored
        if request.request_type == ROLLING:
            return self._rolled
        if request.request_type == AGREEMENT:
            return self._agreed
        own = cached and self._greedy.takes(request.args[1])
        return self._generated if own else self._generated_by_lm_eval

    def _scored(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        return [Response(answer) for answer in self._loglikelihoods(requests)]

    def _rolled(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        return [Response(value) for value in self._loglikelihoods.rolling(requests)]

    def _agreed(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        asked = [self._agreement_of(request) for request in requests]
        return [Response(share) for share in self._loglikelihoods.agreement(asked)]

    def _agreement_of(self, request: Instance) -> tuple[int, np.ndarray]:
        """An answer's number, and its tokens; before the expert was asked, of so many tokens."""
        prompt, most, answer = request.args
        if answer is None:
            if most >= self.lm.max_length:
                raise InputError(
                    f"answers of {most} tokens leave no room for a prompt: the model reads "
                    f"{self.lm.max_length}; lower agreement.tokens"
                )
            return self._loglikelihoods.encode(prompt, (0,) * most), np.zeros(most)
        tokens = tuple(answer.tokens.tolist())
        return self._loglikelihoods.encode(prompt, tokens), answer.best.numpy()

    def expert_answers(
        self, prompts: Sequence[str], question: Question, layers: str
    ) -> ExpertAnswers:
        """Let the model, an expert, answer prompts, and keep what it thought at every token.

        Args:
            prompts: each is read as a generation reads it.
            question: how long answers are, and what is kept.
            layers: the name of the model's list of layers.

        Raises:
            CandidateError: logits are not finite.
            InputError: a prompt leaves no room for an answer.
        """
        settings = {"until": [], "max_gen_toks": question.tokens, "do_sample": False}
        # 1. its greedy answers
        if self._forward.packs() and self._greedy.takes(settings):
            requests = [
                Instance("generate_until", {}, (prompt, settings), index)
                for index, prompt in enumerate(prompts)
            ]
            said = [tuple(answer.tokens) for answer in self._greedy(requests)]
        else:
            said = [self._said(prompt, question.tokens) for prompt in prompts]
        # 2. the same read once more, as candidates will be
        pairs = zip(prompts, said, strict=True)
        asked = [self._loglikelihoods.encode(prompt, tokens) for prompt, tokens in pairs]
        layer = middle_layer(self.lm.model, layers)
        return ExpertAnswers.of(self._loglikelihoods.expert_answers(asked, question, layer))

    @torch.inference_mode()
    def _said(self, prompt: str, most: int) -> tuple[int, ...]:
        """The greedy answer to a prompt of a model that keeps no keys and values by position."""
        room = self.lm.max_length - most
        tokens, mask = self.lm.tok_batch_encode([prompt], left_truncate_len=room)
        tokens, mask = tokens.to(self.lm.device), mask.to(self.lm.device)
        found = self.lm.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=self.lm.tokenizer.pad_token_id,
        )
        return tuple(found[0, tokens.shape[1] :].tolist())

    def _generated(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        return [
            Response(
                answer.text,
                *(response_end(self.lm, answer.tokens, answer.stop) if counted else ()),
            )
            for answer in self._greedy(requests)
        ]

    def _generated_by_lm_eval(self, requests: Sequence[Instance], counted: bool) -> list[Response]:
        while True:
            try:
                with counted_responses(self.lm) as ends:
                    texts = self.lm.generate_until(list(requests), disable_tqdm=True)
                answers = zip(texts, ends, strict=True)
                return [Response(text, *(end if counted else ())) for text, end in answers]
            except Exception as error:
                if self.lm.batch_size == 1 or not ran_out_of_memory(error):
                    raise
                rows = min(self.lm.batch_size, len(requests))
                self.lm.batch_size_per_gpu = max(1, rows // 2)
