"""Hold a campaign's tasks as items, and score each for a model's present weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from evomerge.common.errors import InputError
from evomerge.config import (
    PARAMETERS,
    AgreementTaskConfig,
    CallableConfig,
    ComposeTaskConfig,
    FitnessConfig,
    TaskConfig,
)
from evomerge.fitness.answers import RequestAnswerer
from evomerge.fitness.document_loss import DocumentLoss
from evomerge.fitness.expert_answers import ExpertAnswer, Experts, Question
from evomerge.fitness.tasks.agreement import Agreement, load_agreement
from evomerge.fitness.tasks.composed import load_composed
from evomerge.fitness.tasks.documents import plain_text
from evomerge.fitness.tasks.lm_eval_loading import open_manager
from evomerge.fitness.tasks.lm_eval_quirks import quiet, stock_seeds, templates_compiled_once
from evomerge.fitness.tasks.lm_eval_task import load_lm_eval_task
from evomerge.fitness.tasks.own_metric import load_own_metric
from evomerge.fitness.tasks.response_tokens import CUT_OFF, RESPONSE_TOKENS
from evomerge.fitness.tasks.score_source import MEAN, ScoreSource
from evomerge.fitness.tasks.surrogate_losses import loss_of, prompt_of, unanswered
from evomerge.judging.answer_facts import AnswerFacts


@dataclass(frozen=True)
class TaskItems:
    """The items of one task, or of a measure beside its metric, as the driver knows them.

    Attributes:
        task: the task's name in lm-eval; of a measure, `task.metric`.
        kind: lm-eval's output type; `callable` for a function of the user's own, `agreement` for
            agreement with an expert, `composed` for joined documents.
        metric: the metric's name, without its filter.
        higher_is_better: as the task says.
        weight: the entry's weight; a group's is shared among its tasks as lm-eval averages them.
            0 for a measure.
        ids: item ids in document order: lm-eval's `doc_hash`; a repeated document gets "#2", "#3".
        excluded: ids whose document serves as a few-shot example; these are not to be scored.
        asked: digest of what is asked and what counts as right: it changes with prompts, choices,
            few-shot examples, generation settings and answers. The driver's is taken before, a
            worker's after the chat template, so it takes no part in comparisons.
        marks: of each item, the `documents.marks` that other records of its document share.
        test_set: which public test set the documents are, `openai/gsm8k, split test`; None where
            they are none.
        dataset: the hub's name for its data set; None for local data.
        texts: of each item, its document's `documents.plain_text`.
        aggregate: how items give the task's score: `mean`, a name of
            `judging.corpus_values.AGGREGATES`, or `own`, a function of the task's own.
        runs_code: whether scoring runs code that the model writes.
        teacher: the model with whose answers those of a merge are compared; None for no such.
        unanswered: id → what is wrong, of items without a right answer that a gradient could
            follow.
        composed_of: the tasks whose documents are joined in each of its own.
    """

    task: str
    kind: str
    metric: str
    higher_is_better: bool
    weight: float
    ids: tuple[str, ...]
    excluded: frozenset[str]
    asked: str = field(compare=False)
    marks: tuple[tuple[str, ...], ...] = field(compare=False, repr=False)
    test_set: str | None = None
    dataset: str | None = None
    texts: tuple[str, ...] = field(compare=False, repr=False, default=())
    aggregate: str = MEAN
    runs_code: bool = False
    teacher: str | None = None
    unanswered: Mapping[str, str] = field(compare=False, repr=False, default_factory=dict)
    composed_of: tuple[str, ...] = ()

    @property
    def corpus(self) -> bool:
        """True if the score is of the whole corpus, not a mean of its items' scores."""
        return self.aggregate != MEAN


class TaskSet:
    """The campaign's tasks, their requests built and prepared once for one model.

    Requests are built for all documents in their order, so that few-shot examples are those of a
    stock `lm_eval` run.
    """

    def __init__(
        self, config: FitnessConfig, answerer: RequestAnswerer, experts: Experts | None = None
    ) -> None:
        """Load tasks and data, build and prepare the requests.

        Args:
            config: the section.
            answerer: answers the requests.
            experts: gives experts' answers, where scores or losses compare with them.

        Raises:
            InputError: an unknown task or metric, data that cannot be loaded, or a task that
                cannot be scored item by item; names the key.
        """
        self._answerer, self._experts, self._loss = answerer, experts, config.surrogate_loss
        self._taught: dict[tuple[str, int], ExpertAnswer] = {}
        self._sources = {source.name: source for source in load_sources(config, answerer.lm)}
        self.items = tuple(_describe(source) for source in self._sources.values())
        self._places = {
            name: {item: place for place, item in enumerate(source.ids)}
            for name, source in self._sources.items()
        }
        for source in self._sources.values():
            self._prepare(source)
        self._counts = any(s.filter == RESPONSE_TOKENS for s in self._sources.values())
        self.sized = any(s.filter == PARAMETERS for s in self._sources.values())

    def score(
        self, wanted: Mapping[str, Sequence[str]], counted: bool = False, parameters: int = 0
    ) -> dict[str, np.ndarray]:
        """Metric values of the wanted items, for the weights now in the model.

        Args:
            wanted: item ids by task.
            counted: look at the answers' ends too, for `answer_facts`.
            parameters: the numbers that these weights hold, where the tasks are `sized`.

        Returns:
            For each task float64 values [number of ids], in the order of its ids; `CorpusValues`
            where the score is of the whole corpus.

        Raises:
            CandidateError: a log-likelihood is not finite, or the task's own code fails on the
                model's answers.
            InputError: a task or an item that does not exist.
        """
        asked = {task: self._find(task, ids) for task, ids in wanted.items()}
        # Filters and batches see documents in the order a stock run has them.
        places = {task: sorted(set(found)) for task, found in asked.items()}
        with quiet(), stock_seeds(), templates_compiled_once():
            self._answer(self._requests(places), counted)
            values = {
                task: np.full(len(found), float(parameters))
                if self._sources[task].filter == PARAMETERS
                else self._sources[task].values(found)
                for task, found in places.items()
            }
        return {
            task: values[task][np.searchsorted(places[task], found)]
            for task, found in asked.items()
        }

    def answer_facts(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, AnswerFacts]:
        """Facts about the generated answers of items that were just scored, `counted`.

        Args:
            wanted: item ids by task.

        Returns:
            For each task that generates, and is no measure beside another, its facts in the order
            of the ids.
        """
        return {
            task: self._sources[task].answer_facts(self._find(task, ids))
            for task, ids in wanted.items()
            if self._sources[task].kind == "generate_until" and self._sources[task].weight > 0
        }

    def requests(self, wanted: Mapping[str, Sequence[str]]) -> list[Instance]:
        """List what is asked for these items, given by task.

        Raises:
            InputError: a task or an item that does not exist.
        """
        return self._requests({task: self._find(task, ids) for task, ids in wanted.items()})

    def ask_experts(self, wanted: Mapping[str, Sequence[str]], losses: bool = False) -> None:
        """Have experts answer the prompts of items that are compared with their answers.

        Loads an expert into the model, unless its answers are known.

        Args:
            wanted: item ids by task.
            losses: losses compare with them; else scores alone.

        Raises:
            InputError: an expert cannot be asked, or an item does not exist.
        """
        for task, ids in wanted.items():
            places = [p for p in self._find(task, ids) if (task, p) not in self._taught]
            source = self._sources[task]
            lesson = self._lesson(source, losses)
            if lesson is None or not places:
                continue
            assert self._experts is not None, "nobody to ask"
            prompts = [prompt_of(source, place) for place in places]
            answers = self._experts.answers(task, lesson[0], prompts, lesson[1])
            for place, answer in zip(places, answers, strict=True):
                self._taught[task, place] = answer
                if isinstance(source, Agreement):
                    source.compare_with(place, answer)

    def _lesson(self, source: ScoreSource, losses: bool) -> tuple[str, Question] | None:
        """Who answers a source's prompts, and what is kept of it; None where nobody does."""
        loss = self._loss
        if isinstance(source, Agreement):
            return source.teacher, Question(source.tokens, loss.top_k, loss.reads_hidden)
        if losses and loss.kind == "experts" and source.name in loss.teachers:
            question = Question(loss.tokens, loss.top_k, loss.reads_hidden)
            return loss.teachers[source.name], question
        return None

    def losses(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[DocumentLoss]]:
        """The losses of the wanted items, by task, in the order of the ids.

        Those that compare with an expert's answers were asked for before: `ask_experts`.

        Raises:
            InputError: a task or an item that does not exist, or has no loss.
        """
        with quiet(), templates_compiled_once():
            return {
                task: [self._loss_at(task, place) for place in self._find(task, ids)]
                for task, ids in wanted.items()
            }

    def _loss_at(self, task: str, place: int) -> DocumentLoss:
        answer = partial(self._taught.__getitem__, (task, place))
        return loss_of(self._sources[task], place, self._loss, answer)

    def documents(self, task: str, ids: Sequence[str]) -> list[Any]:
        """List the documents of a task's items.

        Raises:
            InputError: a task or an item that does not exist.
        """
        return [self._sources[task].documents[place] for place in self._find(task, ids)]

    def check(self, splits: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Check that every item of the campaign's splits is here.

        Args:
            splits: split → task → item ids.

        Raises:
            InputError: one is not; names its task.
        """
        for wanted in splits.values():
            for task, ids in wanted.items():
                self._find(task, ids)

    def _requests(self, places: Mapping[str, Sequence[int]]) -> list[Instance]:
        """List requests, each once: measures of one task share its requests."""
        once = {
            id(request): request
            for task, found in places.items()
            for place in found
            for request in self._sources[task].requests[place]
        }
        return list(once.values())

    def _find(self, task: str, ids: Sequence[str]) -> list[int]:
        """Find the places of items among their task's documents."""
        if task not in self._places:
            raise InputError(f"no task {task!r} here; tasks: {', '.join(self._places)}")
        try:
            return [self._places[task][item] for item in ids]
        except KeyError as missing:
            raise InputError(
                f"{task}: no item {missing}; the task's documents have changed since it was named"
            ) from None

    def _prepare(self, source: ScoreSource) -> None:
        try:
            self._answerer.prepare([request for group in source.requests for request in group])
        except InputError as error:
            raise InputError(f"{source.name}: {error}") from None

    def _answer(self, requests: Sequence[Instance], counted: bool) -> None:
        """Let the model answer, each request as often as its task repeats it."""
        for request in requests:
            request.resps, request.filtered_resps = [], {}
        repeated = [request for request in requests for _ in range(request.repeats)]
        responses = self._answerer.answer(repeated, counted=counted or self._counts)
        for request, response in zip(repeated, responses, strict=True):
            request.resps.append(response.value)
            if response.tokens is not None:  # it stands beside what filters make of the text
                request.filtered_resps.setdefault(RESPONSE_TOKENS, []).append(response.tokens)
            if response.cut is not None:
                request.filtered_resps.setdefault(CUT_OFF, []).append(response.cut)


def list_items(config: FitnessConfig) -> tuple[TaskItems, ...]:
    """List the items of every task as `TaskSet.items`, without a model or a tokenizer.

    Which documents serve as few-shot examples depends on the seed and the documents alone; what
    depends on the model (its chat template, its room to generate) is checked by `TaskSet`.

    Raises:
        InputError: as `TaskSet`.
    """
    found = ((_describe(source), source) for source in load_sources(config, None))
    return tuple(replace(items, unanswered=unanswered(source)) for items, source in found)


def list_audit(config: FitnessConfig) -> tuple[TaskItems, ...]:
    """List the items of the tasks of `fitness.audit`, as `list_items`; none without them.

    Raises:
        InputError: as `TaskSet`; names the key.
    """
    section = config.of_audit
    if section is None:
        return ()
    try:
        return list_items(section)
    except InputError as error:
        raise InputError(str(error).replace("fitness.tasks", "fitness.audit.tasks")) from None


def load_sources(config: FitnessConfig, lm: Any | None) -> Iterator[ScoreSource]:
    """Yield every source of scores, in the order of `fitness.tasks`; a task's entries together.

    Args:
        config: the section.
        lm: lm-eval's object for the model; None where nothing is to be scored.

    Raises:
        InputError: a task, its data, metric or examples will not do; names the key.
    """
    with quiet():
        manager = open_manager(config)
    held: dict[str, str] = {}
    for position, spec in enumerate(config.tasks):
        found: Sequence[ScoreSource]
        if isinstance(spec, CallableConfig):
            found = [load_own_metric(f"fitness.tasks[{position}]", spec, lm)]
        elif isinstance(spec, AgreementTaskConfig):
            found = [load_agreement(f"fitness.tasks[{position}]", spec, lm)]
        elif isinstance(spec, ComposeTaskConfig):
            found = load_composed(position, spec, config, manager, lm)
        elif spec.task in held.values():
            continue  # loaded with the task's first entry
        else:
            same = [(i, t) for i, t in enumerate(config.tasks) if t.task == spec.task]
            entries = [(i, t) for i, t in same if isinstance(t, TaskConfig)]
            found = load_lm_eval_task(entries, config, manager, lm)
        for source in found:
            if (other := held.setdefault(source.name, spec.task)) != spec.task:
                raise InputError(
                    f"fitness.tasks[{position}].task: {spec.task!r} and {other!r} both hold "
                    f"{source.name!r}; score each task once"
                )
        yield from found


def _describe(source: ScoreSource) -> TaskItems:
    return TaskItems(
        task=source.name,
        kind=source.kind,
        metric=source.metric,
        higher_is_better=source.higher_is_better,
        weight=source.weight,
        ids=source.ids,
        excluded=source.excluded,
        asked=source.asked(),
        dataset=source.dataset,
        marks=tuple(map(source.marks, range(len(source.documents)))),
        test_set=source.test_set,
        aggregate=source.aggregate,
        runs_code=source.runs_code,
        teacher=source.teacher,
        composed_of=source.composed_of,
        texts=tuple(map(plain_text, source.documents)),
    )
