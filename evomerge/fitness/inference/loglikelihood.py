"""Score log-likelihoods of continuations, as lm-eval up to rounding, at a fraction of its work.

Every distinct (context, continuation) is tokenised once in a worker's life; what inputs begin with
in common is read once (`prefix_packing`); the output head is applied where a continuation is read
off only; log-probabilities are computed in float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from evomerge.common.errors import CandidateError, InputError
from evomerge.fitness.document_loss import Continuation, Reading
from evomerge.fitness.expert_answers import ExpertAnswer, Question
from evomerge.fitness.inference.batch import Batch, PassShape
from evomerge.fitness.inference.forward import Forward, outputs_of
from evomerge.fitness.inference.memory import Budget, ran_out_of_memory
from evomerge.fitness.inference.prefix_packing import Pack, Tokens, by_length, pack_rows

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding would produce it."""
ROLLING = "loglikelihood_rolling"
"""lm-eval's type of request for the log-likelihood of a whole text."""
PLANS = 32
"""Sets of requests whose batches are remembered: splits, and the items that rungs add."""
LOGITS = 1 << 24
"""Logits whose log-probabilities are computed at a time."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class _ReadOff:
    """A batch, and where continuations are read off.

    Attributes:
        batch: what is read.
        of_one_row: whether it cannot be made smaller.
        asked: the continuations, in the order of their tokens below.
        rows: int64 [logits], packs where logits are needed.
        places: int64 [logits], places in them; each pair once.
        at: int64 [tokens of all continuations], the logits that predict a token.
        targets: int64 [tokens of all continuations], the token.
        lengths: number of tokens of each continuation.
    """

    batch: Batch
    of_one_row: bool
    asked: list[int]
    rows: Tensor
    places: Tensor
    at: Tensor
    targets: Tensor
    lengths: list[int]


class LogLikelihoods:
    """Scores requests with the present weights of a model."""

    def __init__(self, lm: HFLM, forward: Forward, budget: Budget) -> None:
        self._lm = lm
        self._forward = forward
        self._budget = budget
        self._max_length: int = lm.max_length
        self._rows: list[Tokens] = []
        self._row_of: dict[bytes, int] = {}
        self._continuations: list[tuple[int, np.ndarray]] = []  # row, tokens
        self._known: dict[tuple[str, Continuation], int] = {}
        self._windows: dict[str, list[int]] = {}  # text → continuations
        self._plan = lru_cache(maxsize=PLANS)(self._planned)

    def encode(self, context: str, continuation: Continuation) -> int:
        """Number a continuation, and tokenise it when it is first met.

        Args:
            context: what is read before.
            continuation: a text, tokens, or the places at the context's own end.

        Raises:
            InputError: it has no tokens, or more than the model can read.
        """
        key = (context, continuation)
        if key not in self._known:
            before, after = self._tokenize(context, continuation)
            if not before or not 0 < len(after) <= self._max_length:
                raise InputError(
                    f"continuation {str(continuation)[:60]!r} of context {context[-60:]!r} has "
                    f"{len(after)} tokens after {len(before)}; the model needs at least one "
                    f"token of context and can score 1 to {self._max_length}"
                )
            self._known[key] = self._add(before, after)
        return self._known[key]

    def encode_rolling(self, text: str) -> list[int]:
        """Number the windows of a text, of which every token is predicted once.

        Windows are as long as the model reads; tokens beyond the first window see those before them
        in theirs, as in `HFLM.loglikelihood_rolling`.
        """
        if text not in self._windows:
            windows = get_rolling_token_windows(
                self._lm.tok_encode(text), self._lm.prefix_token_id, self._max_length, 1
            )
            self._windows[text] = [self._add(*make_disjoint_window(pair)) for pair in windows]
        return self._windows[text]

    def rolling(self, requests: Sequence[Instance]) -> list[float]:
        """The log-likelihood of each request's whole text.

        Raises:
            CandidateError: a log-likelihood is not finite.
        """
        windows = [self.encode_rolling(*request.args) for request in requests]
        asked = list(dict.fromkeys(window for text in windows for window in text))
        found = dict(zip(asked, self.answers(asked), strict=True))
        return [sum(found[window][0] for window in text) for text in windows]

    def _add(self, before: list[int], after: list[int]) -> int:
        """Number a continuation by its tokens; its row is shared with others that read the same."""
        # Too long: cut on the left. The last token is only predicted, never read.
        row = np.array((before + after)[-(self._max_length + 1) :][:-1], dtype=np.int32)
        index = self._row_of.setdefault(row.tobytes(), len(self._rows))
        if index == len(self._rows):
            self._rows.append(row)
        self._continuations.append((index, np.array(after, dtype=np.int64)))
        return len(self._continuations) - 1

    def passes(
        self, requests: Sequence[Instance], continuations: Collection[int] = ()
    ) -> list[PassShape]:
        """The forward passes that answer the requests, planned and not run.

        Args:
            requests: log-likelihoods, also of whole texts.
            continuations: numbers of some more.

        Raises:
            InputError: as `encode`.
        """
        asked = {*continuations}
        for request in requests:
            if request.request_type == ROLLING:
                asked.update(self.encode_rolling(*request.args))
            else:
                asked.add(self.encode(*request.args))
        return [PassShape.of(reading.batch, len(reading.rows)) for reading in self._readings(asked)]

    def __call__(self, requests: Sequence[Instance]) -> list[Answer]:
        """Score requests: `(log-likelihood, is greedy)` of each.

        Raises:
            CandidateError: a log-likelihood is not finite.
            InputError: as `encode`.
        """
        return self.answers([self.encode(*request.args) for request in requests])

    def answers(self, asked: Sequence[int]) -> list[Answer]:
        """`(log-likelihood, is greedy)` for each continuation, by its number.

        Raises:
            CandidateError: a log-likelihood is not finite.
        """
        scored = self._each(asked, self._score)
        return [
            (value, np.array_equal(best, self._continuations[number][1]))
            for number, (value, best) in zip(asked, scored, strict=True)
        ]

    def agreement(self, asked: Sequence[tuple[int, np.ndarray]]) -> list[float]:
        """The share of each continuation's places at which the likeliest token is a given one.

        Args:
            asked: numbers of continuations, each with int tokens [its tokens].

        Raises:
            CandidateError: a log-likelihood is not finite.
        """
        scored = self._each([number for number, _ in asked], self._score)
        pairs = zip(scored, asked, strict=True)
        return [float(np.mean(best == wanted)) for (_, best), (_, wanted) in pairs]

    def each_reading(
        self, asked: Sequence[int], of: Callable[[int, Reading], Found], layer: nn.Module | None
    ) -> list[Found]:
        """What `of` makes of each continuation's number and reading, with logits.

        Args:
            asked: numbers of continuations.
            of: is called once for each; what it returns must not hold on to logits.
            layer: the one whose outputs are the hidden states; None for no hidden states.
        """

        @torch.inference_mode()
        def read(reading: _ReadOff) -> dict[int, Found]:
            readings = self._with_logits(reading, layer, self._forward.logits)
            return {number: of(number, one) for number, one in readings}

        return self._each(asked, read)

    def expert_answers(
        self, asked: Sequence[int], question: Question, layer: nn.Module
    ) -> list[ExpertAnswer]:
        """What an expert, now in the model, thinks at the places of its own answers.

        Args:
            asked: numbers of the answers, continuations of their prompts.
            question: what is kept of it.
            layer: the one whose outputs are the hidden states.

        Raises:
            CandidateError: logits are not finite.
        """

        def kept(number: int, reading: Reading) -> ExpertAnswer:
            assert reading.logits is not None
            _finite(float(reading.loglikelihood))
            logs = reading.logits.log_softmax(-1)
            k = min(question.top_k, logs.shape[-1])
            values, ids = logs.topk(k, -1)
            rest = logs.scatter(-1, ids, -torch.inf).logsumexp(-1)
            hidden = None if reading.hidden is None else reading.hidden.cpu()
            return ExpertAnswer(
                tokens=torch.from_numpy(self._continuations[number][1].astype(np.int32)),
                best=logs.argmax(-1).int().cpu(),
                ids=ids.int().cpu(),
                logs=values.cpu(),
                log_rest=rest.cpu(),
                hidden=hidden,
            )

        return self.each_reading(asked, kept, layer if question.hidden else None)

    def _each(
        self, asked: Sequence[int], read: Callable[[_ReadOff], Mapping[int, Found]]
    ) -> list[Found]:
        """What `read` finds for each continuation, batch by batch."""
        found: dict[int, Found] = {}
        # Until all are answered: plan batches within the budget, and plan again when it changes,
        # because the first pass measured it, or because memory ran out.
        while remaining := {*asked} - found.keys():
            budget = self._budget.tokens
            for reading in self._readings(remaining):
                try:
                    with self._budget.measured(reading.batch.size):
                        found.update(read(reading))
                except Exception as error:
                    if reading.of_one_row or not ran_out_of_memory(error):
                        raise
                    self._budget.halve(reading.batch.size)
                if self._budget.tokens != budget:
                    break
        return [found[continuation] for continuation in asked]

    def length(self, continuation: int) -> tuple[int, int]:
        """Tokens of the row that a continuation is read off, and of the continuation itself."""
        row, tokens = self._continuations[continuation]
        return len(self._rows[row]), len(tokens)

    def differentiable(
        self, asked: Sequence[int], logits: bool = False, layer: nn.Module | None = None
    ) -> dict[int, Reading]:
        """The readings of continuations, by number, with the graph to the weights.

        All are read at once, whatever the memory: the caller asks for few.

        Args:
            asked: numbers of continuations.
            logits: with logits.
            layer: the one whose outputs are the hidden states; None for no hidden states.
        """
        found: dict[int, Reading] = {}
        for reading in self._planned(sorted({*asked}), 1 << 30, self._forward.packs()):
            run = self._forward.differentiable_logits
            found.update(self._with_logits(reading, layer, run, keep=logits))
        return found

    def _with_logits(
        self,
        reading: _ReadOff,
        layer: nn.Module | None,
        run: Callable[[Batch, Tensor, Tensor], Tensor],
        keep: bool = True,
    ) -> Iterator[tuple[int, Reading]]:
        """Run a pass, and yield each continuation's number and reading; with logits to `keep`."""
        # 1. the pass, and what comes out of the layer
        collected = nullcontext(list[Tensor]()) if layer is None else outputs_of(layer)
        with collected as outputs:
            logits = _at_least_float32(run(reading.batch, reading.rows, reading.places))
        device = logits.device
        states = [
            one[reading.rows.to(one.device), reading.places.to(one.device)] for one in outputs
        ]
        # 2. log p(token) = logit − logsumexp(logits)
        at, targets = reading.at.to(device), reading.targets.to(device)
        values = (logits[at, targets] - logits.logsumexp(-1)[at]).split(reading.lengths)
        # 3. each continuation's own, one at a time: logits are large
        for number, value, own in zip(
            reading.asked, values, at.split(reading.lengths), strict=True
        ):
            hidden = [_at_least_float32(one[own.to(one.device)]).to(device) for one in states]
            yield (
                number,
                Reading(
                    loglikelihood=value.sum(),
                    tokens=len(own),
                    logits=logits[own] if keep else None,
                    hidden=hidden[0] if hidden else None,
                ),
            )

    def _tokenize(self, context: str, continuation: Continuation) -> tuple[list[int], list[int]]:
        """Split a request into tokens exactly as `HFLM.loglikelihood` does.

        Before given tokens a context is what a generation reads.
        """
        if not isinstance(continuation, str):
            read = [int(token) for token in self._lm.tok_batch_encode([context])[0][0]]
            read = read or [self._lm.prefix_token_id]
            if isinstance(continuation, tuple):
                return read, list(continuation)
            # the last place predicts a token that is not known, nor looked at
            start = max(1, len(read) - continuation.count + 1)
            return read[:start], [*read[start:], read[-1]]
        if context:
            return self._lm._encode_pair(context, continuation)
        tokens = self._lm.tok_encode(continuation, add_special_tokens=False)
        prefix = self._lm.prefix_token_id
        return (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)

    def _readings(self, asked: set[int]) -> list[_ReadOff]:
        """Plan batches within the present budget."""
        return self._plan(tuple(sorted(asked)), self._budget.tokens, self._forward.packs())

    def _planned(self, asked: Sequence[int], budget: int, share: bool) -> list[_ReadOff]:
        """Plan batches that answer the continuations, of packs or of single rows."""
        of_row: dict[int, list[int]] = {}
        for continuation in asked:
            of_row.setdefault(self._continuations[continuation][0], []).append(continuation)
        rows = {row: self._rows[row] for row in of_row}
        packs = pack_rows(rows, budget if share else 0, self._forward.worth)
        return [self._reading(batch, of_row) for batch in by_length(packs, budget)]

    def _reading(self, packs: Sequence[Pack], of_row: Mapping[int, list[int]]) -> _ReadOff:
        """Find where a batch's logits are needed, and which tokens they are to predict."""
        # 1. For each continuation: the places that predict its tokens, as indices in the batch.
        batch, asked = Batch.of(packs), []
        length, read_at, targets = batch.tokens.shape[1], [], []
        for i, pack in enumerate(packs):
            for row, path in pack.paths.items():
                for continuation in of_row[row]:
                    tokens = self._continuations[continuation][1]
                    asked.append(continuation)
                    # A position predicts the next token: read off the row's end.
                    read_at.append(path[-len(tokens) :].astype(np.int64) + i * length)
                    targets.append(tokens)
        # 2. Continuations of one row share places: each logit is computed once.
        read, at = np.unique(np.concatenate(read_at), return_inverse=True)
        return _ReadOff(
            batch=batch,
            of_one_row=sum(len(pack.paths) for pack in packs) == 1,
            asked=asked,
            rows=torch.from_numpy(read // length),
            places=torch.from_numpy(read % length),
            at=torch.from_numpy(at),
            targets=torch.from_numpy(np.concatenate(targets)),
            lengths=[len(tokens) for tokens in targets],
        )

    @torch.inference_mode()
    def _score(self, reading: _ReadOff) -> dict[int, tuple[float, np.ndarray]]:
        """Score a batch's continuations: number → log-likelihood, and the likeliest tokens."""
        logits = self._forward.logits(reading.batch, reading.rows, reading.places)
        # log p(token) = logit − logsumexp(logits), in float32, a piece at a time.
        pieces = logits.split(max(1, LOGITS // logits.shape[-1]))
        norms = torch.cat([piece.logsumexp(-1) for piece in map(Tensor.float, pieces)])
        at, targets = reading.at.to(logits.device), reading.targets.to(logits.device)
        values = (logits[at, targets].float() - norms[at]).cpu().split(reading.lengths)
        best = logits.argmax(-1)[at].cpu().split(reading.lengths)
        return {
            continuation: (_finite(float(value.sum())), tokens.numpy())
            for continuation, value, tokens in zip(reading.asked, values, best, strict=True)
        }


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise CandidateError(f"non-finite logits: a log-likelihood came out as {value}")
    return value
