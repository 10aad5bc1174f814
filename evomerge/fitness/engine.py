"""Answers lm-eval requests on a resident model: log-likelihoods by the own path, others by HFLM.

What HFLM does at every call is done once here (tokenising), or not at all (the output head at
positions nobody asks about, several forwards for one input).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.errors import CandidateError, InputError
from evomerge.fitness.surroundings import quiet

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding would produce it."""


def make_lm(model: Any, tokenizer: Any, batch_size: int) -> HFLM:
    """Wrap a resident `PreTrainedModel` and its tokenizer for lm-eval.

    Log-probabilities are computed in float32 whatever the model's dtype: in bfloat16 close choices
    tie. A stock run gives the same scores with `--model_args ...,softmax_dtype=float32`.

    Args:
        model: a causal language model; candidates are written into it in place.
        tokenizer: its tokenizer; gets a pad token from lm-eval if it has none.
        batch_size: rows of one forward pass.
    """
    with quiet():
        return HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",
        )


class Engine:
    """Scores requests with the present weights of the model inside `lm`.

    Each distinct (context, continuation) is tokenised once in the engine's life; continuations
    that follow the same input row (the single-token choices of a document) share one forward.
    """

    def __init__(self, lm: HFLM) -> None:
        self.lm = lm
        self._max_length: int = lm.max_length
        self._rows: list[np.ndarray] = []
        self._row_of: dict[bytes, int] = {}
        self._encoded: dict[tuple[str, str], tuple[int, np.ndarray]] = {}

    def run(self, requests: Sequence[Instance]) -> list[Any]:
        """Responses in the order of the requests, as HFLM's methods of the same name give them.

        Raises:
            CandidateError: a log-likelihood is not finite.
            InputError: a continuation has no tokens, or more than the model can read.
        """
        responses: list[Any] = [None] * len(requests)
        for kind in dict.fromkeys(request.request_type for request in requests):
            places = [i for i, request in enumerate(requests) if request.request_type == kind]
            chosen = [requests[i] for i in places]
            if kind == "loglikelihood":
                answers: Sequence[Any] = self.loglikelihood(chosen)
            else:
                answers = getattr(self.lm, kind)(chosen, disable_tqdm=True)
            for place, answer in zip(places, answers, strict=True):
                responses[place] = answer
        return responses

    def encode(self, requests: Sequence[Instance]) -> None:
        """Tokenise the log-likelihood requests now, so that scoring finds them done."""
        for request in requests:
            if request.request_type == "loglikelihood":
                self._encode(*request.args)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Answer]:
        """`(log-likelihood, is greedy)` for each request, equal to HFLM's up to rounding."""
        encoded = [self._encode(*request.args) for request in requests]
        asked: dict[int, list[int]] = {}
        for place, (row, _) in enumerate(encoded):
            asked.setdefault(row, []).append(place)
        rows = sorted(asked, key=lambda row: -len(self._rows[row]))
        answers: list[Any] = [None] * len(requests)
        for start in range(0, len(rows), self.lm.batch_size):
            batch = rows[start : start + self.lm.batch_size]
            continuations = [[encoded[place][1] for place in asked[row]] for row in batch]
            places = [place for row in batch for place in asked[row]]
            for place, answer in zip(places, self._score(batch, continuations), strict=True):
                answers[place] = answer
        return answers

    def _encode(self, context: str, continuation: str) -> tuple[int, np.ndarray]:
        """The index of the input row, and the continuation's tokens, int64 [length]."""
        key = (context, continuation)
        if key not in self._encoded:
            before, after = self._tokenize(context, continuation)
            if not before or not 0 < len(after) <= self._max_length:
                raise InputError(
                    f"continuation {continuation[:60]!r} of context {context[-60:]!r} has "
                    f"{len(after)} tokens after {len(before)}; the model needs at least one "
                    f"token of context and can score 1 to {self._max_length}"
                )
            # Too long: cut on the left. The last token is only predicted, never read.
            row = np.array((before + after)[-(self._max_length + 1) :][:-1], dtype=np.int32)
            index = self._row_of.setdefault(row.tobytes(), len(self._rows))
            if index == len(self._rows):
                self._rows.append(row)
            self._encoded[key] = index, np.array(after, dtype=np.int64)
        return self._encoded[key]

    def _tokenize(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split a request into tokens exactly as `HFLM.loglikelihood` does."""
        if context:
            return self.lm._encode_pair(context, continuation)
        tokens = self.lm.tok_encode(continuation, add_special_tokens=False)
        prefix = self.lm.prefix_token_id
        return (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)

    @torch.inference_mode()
    def _score(
        self, batch: Sequence[int], continuations: Sequence[Sequence[np.ndarray]]
    ) -> list[Answer]:
        """Answers for every continuation of every row of a batch, in that order."""
        rows = [self._rows[row] for row in batch]
        tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        # A position predicts the next token, so a continuation is read off the row's end.
        row_at: list[int] = []
        position_at: list[int] = []
        logit_at: list[np.ndarray] = []
        token_at: list[np.ndarray] = []
        for i, (row, wanted) in enumerate(zip(rows, continuations, strict=True)):
            tokens[i, : len(row)] = row
            longest, first = max(map(len, wanted)), len(row_at)
            row_at += [i] * longest
            position_at += range(len(row) - longest, len(row))
            for continuation in wanted:
                logit_at.append(np.arange(longest - len(continuation), longest) + first)
                token_at.append(continuation)
        logits = self._logits(torch.from_numpy(tokens), row_at, position_at)
        logprobs = logits.log_softmax(-1, dtype=self.lm.softmax_dtype)
        device = logprobs.device
        at = torch.from_numpy(np.concatenate(logit_at)).to(device)
        target = torch.from_numpy(np.concatenate(token_at)).to(device)
        lengths = [len(continuation) for continuation in token_at]
        values = logprobs[at, target].cpu().split(lengths)
        greedy = (logprobs.argmax(-1)[at] == target).cpu().split(lengths)
        return [
            (_finite(float(value.sum())), bool(same.all()))
            for value, same in zip(values, greedy, strict=True)
        ]

    def _logits(
        self, tokens: torch.Tensor, row_at: list[int], position_at: list[int]
    ) -> torch.Tensor:
        """Logits at the chosen (row, position) pairs only, [pairs, vocabulary]."""
        device = self.lm.device
        pairs = torch.tensor(row_at, device=device), torch.tensor(position_at, device=device)
        with _head_narrowed(self.lm.model, pairs) as narrowed:
            logits = self.lm.model(input_ids=tokens.to(device), use_cache=False).logits
        return logits[0] if narrowed else logits[_beside(logits, pairs)]


@contextmanager
def _head_narrowed(model: Any, pairs: tuple[torch.Tensor, torch.Tensor]) -> Iterator[list[bool]]:
    """Let the output head see the chosen (row, position) pairs only, as [1, pairs, hidden].

    Yields a list that is non-empty once the head was narrowed; it stays empty where a model has
    no output module, or computes its logits around it. Narrowing before the head leaves in force
    whatever a model does to its logits afterwards, such as soft-capping.
    """
    narrowed: list[bool] = []

    def narrow(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs:
            return None
        narrowed.append(True)
        return inputs[0][_beside(inputs[0], pairs)].unsqueeze(0), *inputs[1:]

    head = model.get_output_embeddings()
    if head is None:
        yield narrowed
        return
    handle = head.register_forward_pre_hook(narrow)
    try:
        yield narrowed
    finally:
        handle.remove()


def _beside(
    tensor: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices where the tensor is: of a model on several GPUs the end is not where it begins."""
    return pairs[0].to(tensor.device), pairs[1].to(tensor.device)


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise CandidateError(f"non-finite logits: a log-likelihood came out as {value}")
    return value
