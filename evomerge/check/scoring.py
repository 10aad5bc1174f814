"""Scoring rehearsed: a model of few layers, real items, real code, products counted."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from evomerge.check.ledger import Ledger, Product
from evomerge.check.lines import Line
from evomerge.check.machine import Meter
from evomerge.check.products import Products
from evomerge.check.stand_in import Shallow
from evomerge.config import FitnessConfig
from evomerge.errors import CandidateError
from evomerge.fitness.engine import make_lm
from evomerge.fitness.tasks import TaskSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTH = 4
"""Most layers of a rehearsed model; it is also cut to one, and each layer adds as much again."""

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
        self._tasks = TaskSet(fitness, make_lm(shallow.model, tokenizer, fitness.batch_size))
        self._batch = fitness.batch_size
        self._depth = shallow.depth
        vocabulary = shallow.model.get_output_embeddings().weight.shape[0]
        self._choice = vocabulary, _harmless(tokenizer, vocabulary)

    def bytes(self, items: Items) -> Line:
        """The process's own memory beside the model's weights, for a batch of the longest items.

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
        sizes = {task: self._tasks.prompts(task) for task in items}
        requests = sum(len(sizes[task][item]) for task, ids in items.items() for item in ids)
        share = min(1.0, 2 * self._batch / max(1, requests))
        middle = {task: _middle(ids, sizes[task], share) for task, ids in items.items()}
        depths, found = sorted({1, self._depth}), []
        for depth in depths:
            runs = [self._run(middle, depth) for _ in range(2)]
            found.append(min(run[0] for run in runs) + products.seconds(runs[0][2]))
        line, asked = _line(depths, found), sum(map(len, middle.values()))
        scale = _length(items, sizes) / max(1, _length(middle, sizes))
        each = scale / sum(map(len, items.values()))
        return Line(line.outside * each, line.layer * each), asked

    def _longest(self, task: str, ids: Sequence[str]) -> list[str]:
        sizes = self._tasks.prompts(task)
        return sorted(ids, key=lambda item: -max(sizes[item]))[: self._batch]

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


def _middle(ids: Sequence[str], sizes: Mapping[str, Sequence[int]], share: float) -> list[str]:
    """Neighbours in size about the median, as they meet in a batch."""
    ordered = sorted(ids, key=lambda item: sum(sizes[item]))
    count = max(1, round(share * len(ids)))
    start = (len(ids) - count) // 2
    return ordered[start : start + count]


def _length(items: Items, sizes: Mapping[str, Mapping[str, Sequence[int]]]) -> int:
    """Characters of all requests."""
    return sum(sum(sizes[task][item]) for task, ids in items.items() for item in ids)


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
