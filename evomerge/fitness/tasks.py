"""A campaign's tasks as items, and one score per item for a model's present weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.config import FitnessConfig
from evomerge.errors import InputError
from evomerge.fitness.documents import marks
from evomerge.fitness.engine import Engine
from evomerge.fitness.leaves import Leaf, load_leaves
from evomerge.fitness.loading import dataset_of
from evomerge.fitness.surroundings import quiet, stock_seeds, templates_compiled_once
from evomerge.fitness.tokens import RESPONSE_TOKENS, counted_responses


@dataclass(frozen=True)
class TaskItems:
    """What the driver knows of one leaf task, or of a measure beside its score.

    Attributes:
        task: the leaf's name in lm-eval; of a measure, `leaf.metric`.
        metric: the metric's name, without its filter.
        higher_is_better: as the task says.
        weight: the entry's weight; a group's is shared among its leaves as lm-eval averages them.
            0 for a measure.
        ids: item ids in document order: lm-eval's `doc_hash`; a repeated document gets "#2", "#3".
        excluded: ids whose document serves as a few-shot example; these are not to be scored.
        asked: digest of what is asked and what counts as right: it changes with prompts, choices,
            few-shot examples, generation settings and answers. The driver's is taken before, a
            worker's after the chat template, so it takes no part in comparisons.
        marks: of each item, what tells its document apart; see `documents.marks`.
        test_set: which public test set the documents are, `openai/gsm8k, split test`; None where
            they are none.
        dataset: the hub's name for its data set; None for local data.
    """

    task: str
    metric: str
    higher_is_better: bool
    weight: float
    ids: tuple[str, ...]
    excluded: frozenset[str]
    asked: str = field(compare=False)
    marks: tuple[tuple[str, ...], ...] = field(compare=False, repr=False)
    test_set: str | None = None
    dataset: str | None = None


class TaskSet:
    """The campaign's tasks, their requests built and tokenised once for one resident model.

    Requests are built for all documents in their order, so that few-shot examples are those of a
    stock `lm_eval` run.
    """

    def __init__(self, config: FitnessConfig, lm: HFLM) -> None:
        """Load tasks and data, build and tokenise the requests.

        Raises:
            InputError: an unknown task or metric, data that cannot be loaded, or a task that
                cannot be scored item by item; names the key.
        """
        self._engine = Engine(lm)
        self._leaves = {leaf.name: leaf for leaf in load_leaves(config, lm)}
        self.items = tuple(_describe(leaf) for leaf in self._leaves.values())
        self._places = {
            name: {item: place for place, item in enumerate(leaf.ids)}
            for name, leaf in self._leaves.items()
        }
        for leaf in self._leaves.values():
            self._encode(leaf)
        filters = [leaf.filter for leaf in self._leaves.values()]
        self._count = counted_responses if RESPONSE_TOKENS in filters else _uncounted

    def score(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Metric values of the wanted items, for the weights now in the model.

        Args:
            wanted: item ids by leaf task.

        Returns:
            For each task float64 values [number of ids], in the order of its ids.

        Raises:
            CandidateError: a log-likelihood is not finite, or the task's own code fails on the
                model's answers.
            InputError: a task or an item that does not exist.
        """
        asked = {task: self._find(task, ids) for task, ids in wanted.items()}
        # Filters and batches see documents in the order a stock run has them.
        places = {task: sorted(set(found)) for task, found in asked.items()}
        with quiet(), stock_seeds(), templates_compiled_once():
            # Measures of one task share its requests.
            wanted_once = {
                id(request): request
                for task, found in places.items()
                for place in found
                for request in self._leaves[task].requests[place]
            }
            self._answer(list(wanted_once.values()))
            values = {task: self._leaves[task].values(found) for task, found in places.items()}
        value_at = {task: dict(zip(places[task], values[task], strict=True)) for task in places}
        return {
            task: np.array([value_at[task][place] for place in found], dtype=np.float64)
            for task, found in asked.items()
        }

    def prompts(self, task: str) -> dict[str, list[int]]:
        """Item → how many characters each of its requests begins with."""
        leaf = self._leaves[task]
        return {
            item: [len(request.args[0]) for request in requests]
            for item, requests in zip(leaf.ids, leaf.requests, strict=True)
        }

    def check(self, splits: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """See that every item of the campaign's splits is here: split → task → item ids.

        Raises:
            InputError: one is not; names its task.
        """
        for wanted in splits.values():
            for task, ids in wanted.items():
                self._find(task, ids)

    def _find(self, task: str, ids: Sequence[str]) -> list[int]:
        """The places of items among their task's documents."""
        if task not in self._places:
            raise InputError(f"no task {task!r} here; tasks: {', '.join(self._places)}")
        try:
            return [self._places[task][item] for item in ids]
        except KeyError as missing:
            raise InputError(
                f"{task}: no item {missing}; the task's documents have changed since it was named"
            ) from None

    def _encode(self, leaf: Leaf) -> None:
        try:
            self._engine.encode([request for group in leaf.requests for request in group])
        except InputError as error:
            raise InputError(f"{leaf.name}: {error}") from None

    def _answer(self, requests: Sequence[Instance]) -> None:
        """Let the model answer, each request as often as its task repeats it."""
        for request in requests:
            request.resps, request.filtered_resps = [], {}
        repeated = [request for request in requests for _ in range(request.repeats)]
        with self._count(self._engine.lm) as lengths:
            responses = self._engine.run(repeated)
        for request, response in zip(repeated, responses, strict=True):
            request.resps.append(response)
        if lengths:  # they stand beside what filters make of the text
            generated = [one for one in repeated if one.request_type == "generate_until"]
            for request, length in zip(generated, lengths, strict=True):
                request.filtered_resps.setdefault(RESPONSE_TOKENS, []).append(length)


def list_items(config: FitnessConfig) -> tuple[TaskItems, ...]:
    """What `TaskSet.items` says, without a model or a tokenizer.

    Which documents serve as few-shot examples depends on the seed and the documents alone; what
    depends on the model (its chat template, its room to generate) is checked by `TaskSet`.

    Raises:
        InputError: as `TaskSet`.
    """
    return tuple(_describe(leaf) for leaf in load_leaves(config, None))


@contextmanager
def _uncounted(_: HFLM) -> Iterator[list[int]]:
    yield []


def _describe(leaf: Leaf) -> TaskItems:
    return TaskItems(
        task=leaf.name,
        metric=leaf.metric,
        higher_is_better=leaf.higher_is_better,
        weight=leaf.weight,
        ids=leaf.ids,
        excluded=leaf.excluded,
        asked=leaf.asked(),
        dataset=dataset_of(leaf.task),
        marks=tuple(marks(group[0].doc) for group in leaf.requests),
        test_set=leaf.test_set,
    )
