"""Scoring rehearsed: a model of few layers, real items, real code, products counted."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from evomerge.common.errors import CandidateError
from evomerge.config import FitnessConfig
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.inference.memory import FIRST
from evomerge.fitness.tasks.task_set import TaskSet
from evomerge.preflight.ledger import Ledger, Product
from evomerge.preflight.lines import Line
from evomerge.preflight.machine import Meter
from evomerge.preflight.products import Products
from evomerge.preflight.stand_in import Shallow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTH = 4
"""Most layers of a rehearsed model; it is also cut to one, and each layer adds as much again."""
BATCHES = 2
"""So many stand for all; one of them is full, for packs with branches come apart from others."""

Items = Mapping[str, Sequence[str]]
"""task → ids."""


class Rehearsal:
    """A campaign's tasks, before a shallow model."""

    def __init__(
        self, fitness: FitnessConfig, shallow: Shallow, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Build and tokenise the requests.

        Raises:
            InputError: as `TaskSet`.
        """
        self._shallow = shallow
        lm = make_lm(shallow.model, tokenizer, fitness.batch_size)
        # On a GPU batches grow into the memory that is there; what they begin with must fit.
        self._local = Local(lm, fitness.engine.options.get("batch_tokens") or FIRST)
        self._tasks = TaskSet(fitness, self._local)
        self._kinds = {task.task: task.kind for task in self._tasks.items}
        self._rows = fitness.batch_size
        self._depth = shallow.depth
        vocabulary = shallow.model.get_output_embeddings().weight.shape[0]
        self._choice = vocabulary, _harmless(tokenizer, vocabulary)
        self._run({}, self._depth)  # the engine tries out, once, what it can do with the model

    def bytes(self, items: Items) -> Line:
        """The process's own memory beside the model's weights, for batches of the longest items.

        Of the heap what it has come to when it has settled; what is kept for each layer (the KV
        cache) is told by the tensors that were alive at a time.
        """
        longest = {task: self._longest(task, ids) for task, ids in items.items()}
        meter, depths = Meter(self._device), range(max(1, self._depth - 1), self._depth + 1)
        lives = [self._run(longest, depth)[1] for depth in depths]
        layer = _line(depths, lives).layer
        return Line(max(meter.most(), lives[-1]) - self._depth * layer, layer)

    def seconds(self, items: Items, products: Products) -> tuple[Line, int]:
        """An item's, and on how many they rest: neighbours in size stand for all."""
        parts = [self._seconds(part, products) for part in self._by_kind(items)]
        count = sum(map(len, items.values()))
        outside, layer = sum(one.outside for one, _ in parts), sum(one.layer for one, _ in parts)
        return Line(outside / count, layer / count), sum(asked for _, asked in parts)

    def _seconds(self, items: Items, products: Products) -> tuple[Line, int]:
        """Of all items together, which are of one kind, and on how many that rests."""
        share = min(1.0, BATCHES / self._batches(items))
        middle = {task: self._middle(task, ids, share) for task, ids in items.items()}
        depths, found = sorted({1, self._depth}), []
        for depth in depths:
            runs = [self._run(middle, depth) for _ in range(2)]
            found.append(min(run[0] for run in runs) + products.seconds(runs[0][2]))
        line = _line(depths, found)
        # Layers see tokens; the head, and all that is no model, answers.
        answers, tokens = (count(items) / count(middle) for count in (self._answers, self._tokens))
        return Line(line.outside * answers, line.layer * tokens), sum(map(len, middle.values()))

    def _by_kind(self, items: Items) -> Iterator[Items]:
        asked = {task: ids for task, ids in items.items() if ids}
        for kind in sorted({self._kinds[task] for task in asked}):
            yield {task: ids for task, ids in asked.items() if self._kinds[task] == kind}

    def _batches(self, items: Items) -> float:
        """How many they fill: of log-likelihoods tokens, of anything else rows."""
        requests = self._tasks.requests(items)
        if requests and requests[0].request_type == "loglikelihood":
            return self._local.size(requests) / self._local.budget.tokens
        return self._answers(items) / self._rows

    def _answers(self, items: Items) -> int:
        """How many requests there are; of a callable, documents."""
        return len(self._tasks.requests(items)) or sum(map(len, items.values()))

    def _tokens(self, items: Items) -> int:
        """How many the model reads; of a callable it is not known, and its documents count."""
        return self._local.size(self._tasks.requests(items)) or self._answers(items)

    def _longest(self, task: str, ids: Sequence[str]) -> list[str]:
        """As many as make a full batch."""
        sizes = self._tasks.prompts(task)
        ordered = sorted(ids, key=lambda item: -max(sizes[item]))
        most = BATCHES * max(self._local.budget.tokens, self._rows)  # each has a token, a row
        counts = range(1, min(len(ordered), most))
        found = bisect_left(counts, BATCHES, key=lambda n: int(self._batches({task: ordered[:n]})))
        return ordered[: found + 1]

    def _middle(self, task: str, ids: Sequence[str], share: float) -> list[str]:
        """Neighbours in size about the median, as they meet in a batch."""
        sizes = self._tasks.prompts(task)
        ordered = sorted(ids, key=lambda item: sum(sizes[item]))
        count = max(1, round(share * len(ids)))
        start = (len(ids) - count) // 2
        return ordered[start : start + count]

    def _run(self, items: Items, depth: int) -> tuple[float, int, Counter[Product]]:
        """Seconds without products, the most bytes alive at a time, and the products."""
        self._shallow.cut(depth)
        weights = [*self._shallow.model.parameters(), *self._shallow.model.buffers()]
        ledger = Ledger(weights, self._choice)
        started = time.perf_counter()
        with ledger, torch.inference_mode():
            try:
                self._tasks.score(items)
            except CandidateError as error:  # of a task's code, about answers without sense
                logging.getLogger(__name__).info("rehearsal: %s", error)
        return time.perf_counter() - started, ledger.peak, ledger.products

    @property
    def _device(self) -> str:
        return self._shallow.model.device.type


def _line(depths: Sequence[int], values: Sequence[float]) -> Line:
    if len(depths) == 1:
        return Line(values[0], 0.0)
    layer = max(0.0, (values[-1] - values[0]) / (depths[-1] - depths[0]))
    return Line(values[-1] - depths[-1] * layer, layer)


def _harmless(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> int:
    """A token that ends no answer: letters and digits only."""
    special = set(tokenizer.all_special_ids)
    for index in range(min(vocabulary, len(tokenizer)) - 1, 0, -1):
        if index not in special and tokenizer.decode([index]).strip().isalnum():
            return index
    return 0
