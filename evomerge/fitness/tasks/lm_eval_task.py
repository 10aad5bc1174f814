"""Prepare lm-eval tasks for scoring: choose metrics, draw few-shot examples, build requests.

Choosing an lm-eval metric, its filter and its direction is `_choose_metric`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from lm_eval.api.instance import Instance
from lm_eval.api.registry import aggregation_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from typing_extensions import override

from evomerge.common.errors import CandidateError, InputError
from evomerge.config import PARAMETERS, FitnessConfig, TaskConfig
from evomerge.fitness.tasks.corpus_metrics import (
    OWN,
    aggregate_of,
    by_own_function,
    is_brier,
    parts_of,
    squared_error,
)
from evomerge.fitness.tasks.documents import document_hash, item_ids
from evomerge.fitness.tasks.lm_eval_loading import (
    LoadedTasks,
    dataset_of,
    load_tasks,
    missing_split,
)
from evomerge.fitness.tasks.lm_eval_quirks import quiet, stock_seeds, templates_compiled_once
from evomerge.fitness.tasks.response_tokens import CUT_OFF, RESPONSE_TOKENS
from evomerge.fitness.tasks.score_source import MEAN, ScoreSource
from evomerge.judging.answer_facts import AnswerFacts
from evomerge.judging.constraints import Values
from evomerge.judging.corpus_values import CorpusValues

_LOGGER = logging.getLogger(__name__)
_SCORING_KEYS = ("output_type", "repeats", "filter_list", "metric_list", "process_results")
"""Keys of a task's configuration that turn answers into values; prompts are taken as rendered."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True, kw_only=True)
class LmEvalMetric(ScoreSource):
    """One metric of one lm-eval task.

    Attributes:
        task: the lm-eval `Task`, shared by its metrics, as `requests` are.
        brier: whether a document's value is the squared error of its probabilities.
    """

    task: Any
    brier: bool = False

    @override
    def asked(self) -> str:
        # SHA-256 over every request's arguments, every target and how answers become values.
        digest = hashlib.sha256()
        config = self.task.dump_config()
        scoring = {key: config.get(key) for key in _SCORING_KEYS}
        digest.update(_ADDRESS.sub("", json.dumps(scoring, sort_keys=True, default=str)).encode())
        with templates_compiled_once():
            for requests in self.requests:
                target = self.task.doc_to_target(deepcopy(requests[0].doc))
                asked = [target, *(request.args for request in requests)]
                digest.update(json.dumps(asked, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    @override
    def values(self, places: Sequence[int]) -> Values:
        if not places:
            return np.zeros(0)
        if self.filter == RESPONSE_TOKENS:
            return np.array([self._tokens(place) for place in places])
        # Filters work on the list of instances the task holds.
        self.task._instances = [one for place in places for one in self.requests[place]]
        self.task.apply_filters()
        found = [self._result(place) for place in places]
        if self.aggregate == OWN:
            return self._by_own_function(found)
        if self.aggregate != MEAN:
            return self._of_corpus(places, found)
        return np.array([self._number(*each) for each in zip(places, found, strict=True)])

    def _by_own_function(self, found: Sequence[Any]) -> Values:
        """The documents' values where the task's own function gives the score of all."""
        try:
            values = by_own_function(_aggregations(self.task)[self.metric], found)
        # It is the task author's own code.
        except Exception as error:
            raise CandidateError(
                f"{self.name}: the aggregation of {self.metric} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not np.isfinite(values).all():
            raise CandidateError(f"{self.name}: {self.metric} is not finite on these documents")
        return values

    def _of_corpus(self, places: Sequence[int], found: Sequence[Any]) -> CorpusValues:
        """The documents' parts of the score, from what `process_results` made of the answers."""
        classes = max(map(len, self.requests))
        try:
            parts = parts_of(self.aggregate, found, classes)
        except (IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.name}: metric {self.metric!r} is {str(found[0])[:80]} on item "
                f"{self.ids[places[0]]}, which {self.aggregate} does not take: {error}"
            ) from error
        values = CorpusValues.of(self.aggregate, parts)
        if not np.isfinite(values).all():
            raise CandidateError(f"{self.name}: {self.metric} is not finite on these documents")
        return values

    @override
    def answer_facts(self, places: Sequence[int]) -> AnswerFacts:
        rows = [self._facts(self.requests[place]) for place in places]
        return AnswerFacts(*np.array(rows, np.float64).reshape(-1, 3).T)

    def _facts(self, requests: Sequence[Instance]) -> tuple[float, float, float]:
        """Length, cut off, and not readable, of a document's answers; NaN where not known."""
        said = [request.filtered_resps for request in requests]
        counts = [n for one in said for n in one.get(RESPONSE_TOKENS, ())]
        cuts = [cut for one in said for cut in one.get(CUT_OFF, ())]
        found = [one[self.filter] for one in said if self.filter in one]
        readable = [each not in self._unreadable for one in found for each in _listed(one)]
        return (
            sum(counts) / len(counts) if counts else math.nan,
            float(any(cuts)) if cuts else math.nan,
            float(not all(readable)) if readable and self._unreadable else math.nan,
        )

    @cached_property
    def _unreadable(self) -> tuple[Any, ...]:
        """What the metric's filter gives where it finds no answer; empty where it always finds."""
        chains = [each.filters for each in self.task._filters if each.name == self.filter]
        steps = [step() for filters in chains for step in filters]
        return tuple(step.fallback for step in steps if hasattr(step, "fallback"))

    def _tokens(self, place: int) -> float:
        """Mean length of a document's answers; there are several where a task repeats."""
        counts = [n for one in self.requests[place] for n in one.filtered_resps[RESPONSE_TOKENS]]
        return sum(counts) / len(counts)

    def _result(self, place: int) -> Any:
        """What the task's `process_results` gives for the metric on one document."""
        requests = self.requests[place]
        responses = [request.filtered_resps[self.filter] for request in requests]
        try:
            # The task's code may change the document it is given; lm-eval hands out a fresh one.
            results = self.task.process_results(deepcopy(requests[0].doc), responses)
        except Exception as error:
            raise CandidateError(
                f"{self.name}: process_results failed on item {self.ids[place]}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return results.get(self.metric)

    def _number(self, place: int, found: Any) -> float:
        try:
            value = float(squared_error(found) if self.brier else found)
        except (IndexError, TypeError, ValueError):
            raise InputError(
                f"{self.name}: metric {self.metric!r} is {found!r} on item "
                f"{self.ids[place]}, not one number per document; choose another metric"
            ) from None
        if not math.isfinite(value):
            raise CandidateError(f"{self.name}: {self.metric} is {value} on {self.ids[place]}")
        return value


def _listed(found: Any) -> list[Any]:
    """What a filter made of a request's answers, as a list; `take_first` leaves one of them."""
    return list(found) if isinstance(found, list | tuple) else [found]


Entries = Sequence[tuple[int, TaskConfig]]
"""The entries of `fitness.tasks` that name one task, group or tag, with their positions."""


def load_lm_eval_task(
    entries: Entries, config: FitnessConfig, manager: TaskManager, lm: Any | None
) -> list[LmEvalMetric]:
    """Load what entries of `fitness.tasks` name: its metrics, and the measures beside them.

    Args:
        entries: those that name it; they differ in metric, measures and weight alone.
        config: the section.
        manager: knows the task.
        lm: the model whose chat template and limits the requests follow; without one they are
            built as plain text, which gives the same ids and few-shot examples.

    Raises:
        InputError: a task, its data, metric or examples will not do; names the key.
    """
    with quiet(), stock_seeds(), templates_compiled_once():
        loaded = load_tasks(manager, *entries[0], config)
        return _build(entries, config, loaded, lm)


Metric = tuple[str, str, bool]
"""A metric's name in lm-eval, its filter, and whether higher is better."""


def _build(
    entries: Entries, config: FitnessConfig, loaded: LoadedTasks, lm: Any | None
) -> list[LmEvalMetric]:
    position, spec = entries[0]
    where = f"fitness.tasks[{position}]"
    # 1. Settings of the entries, and the metrics to read.
    for task in loaded.tasks.values():
        _configure(task, spec, config.fewshot_seed)
    metrics = {name: _metrics(name, task, entries) for name, task in loaded.tasks.items()}
    # 2. Requests of every document; documents drawn as few-shot examples are not scored.
    drawn = {name: _request(where, name, loaded.tasks[name], spec, lm) for name in loaded.tasks}
    for name, task in loaded.tasks.items():
        _check_every_document_is_asked(where, name, task)
        if lm is None:  # where documents are listed; workers need not say it again
            _tell_of_answers_without_a_choice(where, name, task)
            _tell_of_missing_values(where, name, task)
    requests = {name: _by_document(task.instances) for name, task in loaded.tasks.items()}
    documents = {name: tuple(group[0].doc for group in requests[name]) for name in loaded.tasks}
    ids = {name: item_ids(documents[name]) for name in loaded.tasks}
    excluded = {name: _excluded(where, name, ids[name], drawn[name]) for name in loaded.tasks}
    # 3. An entry's weight is shared among its tasks; measures beside the metric have none.
    sizes = {name: len(ids[name]) - len(excluded[name]) for name in loaded.tasks}
    shares = [_shares(sizes, spec, loaded.group) for _, spec in entries]
    return [
        LmEvalMetric(
            name=f"{name}.{metric}" if later else name,
            kind=task.OUTPUT_TYPE,
            task=task,
            metric=metric,
            filter=read_under,
            higher_is_better=higher,
            weight=0.0 if entry is None else shares[entry][name],
            documents=documents[name],
            ids=ids[name],
            excluded=excluded[name],
            requests=requests[name],
            dataset=dataset_of(task),
            test_set=loaded.test_sets[name],
            aggregate=aggregate_of(_aggregations(task).get(metric)) or MEAN,
            brier=is_brier(_aggregations(task).get(metric)),
            runs_code=bool(getattr(task, "UNSAFE_CODE", False)),
        )
        for name, task in loaded.tasks.items()
        for later, (entry, (metric, read_under, higher)) in enumerate(metrics[name])
    ]


def _configure(task: Any, spec: TaskConfig, fewshot_seed: int) -> None:
    """Apply the entry's settings as `simple_evaluate` applies its arguments."""
    if task.OUTPUT_TYPE == "generate_until" and spec.gen_kwargs:
        task.set_config("generation_kwargs", dict(spec.gen_kwargs), update=True)
    default = task.get_config("num_fewshot")
    # A task that fixes 0 in its file keeps it.
    if spec.num_fewshot is not None and default != 0:
        task.set_config("num_fewshot", spec.num_fewshot)
    elif default is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(fewshot_seed)


def _metrics(name: str, task: Any, entries: Entries) -> list[tuple[int | None, Metric]]:
    """Choose what is read off a task's answers, each with the place of the entry that it scores.

    Of each entry its metric first, then the measures beside it, which score none.
    """
    found: list[tuple[int | None, Metric]] = []
    for place, (position, spec) in enumerate(entries):
        where = f"fitness.tasks[{position}]"
        found.append((place, _choose_metric(f"{where}.metric", name, task, spec.metric)))
        for number, measure in enumerate(spec.measures):
            chosen = _choose_metric(f"{where}.measures[{number}]", name, task, measure)
            if chosen in [metric for _, metric in found]:
                raise InputError(f"{where}.measures: {measure!r} is the metric of {name} already")
            found.append((None, chosen))
    return found


def _choose_metric(where: str, name: str, task: Any, named: str) -> Metric:
    """Choose a metric by its name: its name in lm-eval, its filter, and whether higher is better.

    Args:
        where: the key, for messages.
        name: the task's name.
        task: lm-eval's task.
        named: `metric`, or `metric,filter` as lm-eval prints it.

    Raises:
        InputError: the task has no such metric, not as a mean of one number per document, under
            several filters, or without a direction.
    """
    # 1. Response tokens and parameters stand beside lm-eval's own metrics.
    metric, _, wanted = named.partition(",")
    if named == PARAMETERS:
        return PARAMETERS, PARAMETERS, False
    if named == RESPONSE_TOKENS:
        if task.OUTPUT_TYPE != "generate_until":
            raise InputError(
                f"{where}: {name} generates nothing (output_type {task.OUTPUT_TYPE}), so it has no "
                f"{RESPONSE_TOKENS}; name a generate_until task, or leave it out"
            )
        return RESPONSE_TOKENS, RESPONSE_TOKENS, False
    # 2. lm-eval's metrics are those that it aggregates, under each of the task's filters.
    filters = [ensemble.name for ensemble in task._filters]
    aggregation = _aggregations(task)
    printed = ", ".join(f"{key},{each}" for key in aggregation for each in filters)
    if metric not in aggregation or (wanted and wanted not in filters):
        near = difflib.get_close_matches(metric, aggregation, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != metric else ""
        raise InputError(f"{where}: {name} has no metric {named!r}; it has: {printed}{hint}")
    # 3. lm-eval's `bypass` measures nothing.
    usable = [key for key, function in aggregation.items() if aggregate_of(function)]
    if metric not in usable:
        raise InputError(
            f"{where}: {metric!r} of {name} is not aggregated to a score"
            f"{_aggregation_hint(task, metric)}; usable: {', '.join(usable) or 'none'}"
        )
    # 4. Filter and direction must be known.
    if not wanted and len(filters) > 1:
        raise InputError(
            f"{where}: {name} has {metric!r} under several filters; name one: "
            + ", ".join(repr(f"{metric},{each}") for each in filters)
        )
    directions = task.higher_is_better()
    higher = directions.get(metric, directions.get(_source_of(task).get(metric)))
    if higher is None:
        raise InputError(
            f"{where}: {name} does not say whether a higher {metric!r} is better; "
            "set higher_is_better in its metric_list"
        )
    return metric, wanted or filters[0], bool(higher)


def _aggregation_hint(task: Any, metric: str) -> str:
    """Name the aggregation of a metric that its task's file gives and lm-eval does not have."""
    listed = [one for one in task.config.metric_list or () if one.get("metric") == metric]
    named = listed[0].get("aggregation") if listed else None
    if not isinstance(named, str) or named in aggregation_registry:
        return ""
    near = difflib.get_close_matches(named, list(aggregation_registry.keys()), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f": lm-eval has no aggregation {named!r} (metric_list in the task's file){hint}"


def _source_of(task: Any) -> dict[str, str]:
    """pass@1, pass@10, … → the metric of the task that gives them all (`k: [1, 10]`)."""
    return {
        f"pass@{k}": metric
        for metric, kwargs in getattr(task, "_metric_fn_kwargs", {}).items()
        if isinstance(numbers := kwargs.get("k"), list)
        for k in numbers
    }


def _aggregations(task: Any) -> dict[str, Any]:
    """Metric, as lm-eval prints it → the function that aggregates it."""
    found, given = dict(task.aggregation()), _source_of(task)
    passes = {name: found[metric] for name, metric in given.items() if metric in found}
    return {key: one for key, one in found.items() if key not in given.values()} | passes


def _request(where: str, name: str, task: Any, spec: TaskConfig, lm: Any | None) -> list[Any]:
    """Build a task's requests for all documents; return those drawn as few-shot examples."""
    chat: dict[str, Any] = {}
    if lm is not None:
        _check_limits(where, name, task, spec, lm)
        if spec.apply_chat_template:
            template = _chat_template(where, name, spec, lm)
            chat = {"chat_template": template, "tokenizer_name": lm.tokenizer_name}
    with _examples_collected(task) as drawn:
        try:
            task.build_all_requests(
                system_instruction=spec.system_instruction,
                fewshot_as_multiturn=spec.multiturn,
                apply_chat_template=bool(chat),
                **chat,
            )
        except InputError:
            raise
        # Building runs the task author's own code and templates: anything can come out of it.
        except Exception as error:
            reason = missing_split(task, error)
            if "Sample larger than population" in str(error):
                raise InputError(
                    f"{where}.num_fewshot: {task.config.num_fewshot} examples are asked for, and "
                    f"{name!r} has fewer documents to draw them from; ask for fewer"
                ) from None
            if reason is None:
                reason = f"{type(error).__name__}: {error}{_failing_document(task)}"
            raise InputError(
                f"{where}.task: the requests of {name!r} cannot be built: {reason}"
            ) from error
    return drawn


def _chat_template(where: str, name: str, spec: TaskConfig, lm: Any) -> Callable[..., str]:
    """The model's chat template; one that refuses system turns is told of.

    lm-eval leaves the system turn out then, in which the campaign's instruction and the task's
    description stand, and says so in a log that is silenced here.

    Raises, when it is applied:
        InputError: it refuses the campaign's instruction.
    """
    tried = not hasattr(lm.tokenizer, "apply_chat_template")

    def apply(history: list[dict[str, str]], **kwargs: Any) -> str:
        nonlocal tried
        if not tried and any(turn["role"] == "system" for turn in history):
            tried = True
            try:
                lm.tokenizer.apply_chat_template(history, tokenize=False)
            except TemplateError as error:
                refused = f"the base model's chat template refuses system turns ({error})"
                if spec.system_instruction:
                    raise InputError(
                        f"{where}.system_instruction: {refused}; leave it out, or write it into "
                        "the task's doc_to_text"
                    ) from None
                _LOGGER.warning("%s: %s: the description of %s is left out", where, refused, name)
        try:
            return lm.apply_chat_template(history, **kwargs)
        except TemplateSyntaxError as error:
            raise InputError(
                f"{where}.apply_chat_template: the base model's chat template is no template "
                f"(line {error.lineno}: {error.message}); mend it (chat_template.jinja, or "
                "chat_template in tokenizer_config.json), or leave apply_chat_template out"
            ) from None

    return apply


def _check_every_document_is_asked(where: str, name: str, task: Any) -> None:
    """Refuse documents that give no request, which lm-eval leaves out: they have no choices."""
    documents, asked = task.eval_docs, {instance.doc_id for instance in task.instances}
    if missing := [place for place in range(len(documents)) if place not in asked]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{where}.task: document {missing[0] + 1} of {len(documents)} of {name!r}{more} has no "
            f"choices, so that nothing can be asked: {str(documents[missing[0]])[:200]}; correct "
            "it, or leave it out (process_docs in the task's file can)"
        )


def _failing_document(task: Any) -> str:
    """Name the first document whose prompt, answer or choices cannot be made; "" if all can."""
    documents = task.eval_docs
    for place, document in enumerate(documents, 1):
        try:
            task.doc_to_text(document)
            task.doc_to_target(document)
            if task.OUTPUT_TYPE == "multiple_choice":
                iter(task.doc_to_choice(document))
        except Exception:  # the task author's own code, as above
            return f" (document {place} of {len(documents)}: {str(document)[:200]})"
    return ""


def _tell_of_answers_without_a_choice(where: str, name: str, task: Any) -> None:
    """Warn of documents whose right answer is none of their choices: they count as wrong.

    lm-eval says so of each in a log, when it scores.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", 0):
        return
    found, twice = [], []
    documents = task.eval_docs
    for place, document in enumerate(documents):
        with suppress(Exception):  # the task author's own code; scoring will name what fails
            given, choices = task.doc_to_target(document), task.doc_to_choice(document)
            answers = given if isinstance(given, list) else [given]
            if not any(
                a in (choices if isinstance(a, str) else range(len(choices))) for a in answers
            ):
                found.append((place + 1, given, len(choices)))
            elif isinstance(given, int) and choices[given] in choices[:given]:
                twice.append((place + 1, choices[given]))
    if twice:
        more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        _LOGGER.warning(
            "%s: the right answer of document %d of %d of %r%s, %r, stands among its choices "
            "before, too, and of equal choices the first is taken: whatever a model says counts "
            "as wrong",
            where,
            twice[0][0],
            len(documents),
            name,
            more,
            twice[0][1],
        )
    if found:
        place, given, count = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        _LOGGER.warning(
            "%s: the answer of document %d of %d of %r%s, %r, is none of its %d choices: whatever "
            "a model says counts as wrong",
            where,
            place,
            len(documents),
            name,
            more,
            given,
            count,
        )


def _tell_of_missing_values(where: str, name: str, task: Any) -> None:
    """Warn of documents that lack a value which others have and their prompt names.

    Data sets hold None there, and a template writes it as the word.
    """
    keys = ("doc_to_text", "doc_to_target", "doc_to_choice")
    templates = [text for key in keys if isinstance(text := getattr(task.config, key, None), str)]
    documents = [document for document in task.eval_docs if isinstance(document, dict)]
    for field in dict.fromkeys(key for document in documents for key in document):
        pattern = re.compile(rf"\b{re.escape(str(field))}\b")
        if not any(pattern.search(text) for text in templates):
            continue
        lacking = [n for n, document in enumerate(documents, 1) if document.get(field) is None]
        # a template may well ask first whether there is one
        if len(lacking) < len(documents):
            lacking = [n for n in lacking if _says_none(task, documents[n - 1])]
        if lacking and len(lacking) < len(documents):
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            _LOGGER.warning(
                "%s: document %d of %d of %r%s has no %r, for which its prompt or answer would say "
                "'None'; correct it, or leave it out (process_docs in the task's file can)",
                where,
                lacking[0],
                len(documents),
                name,
                more,
                field,
            )


def _says_none(task: Any, document: Any) -> bool:
    """Say whether a document's prompt, answer or choices hold the word for a missing value."""
    with suppress(Exception):  # the task author's own code; scoring will name what fails
        asked = [task.doc_to_text(document), task.doc_to_target(document)]
        if task.config.doc_to_choice is not None:
            asked.append(task.doc_to_choice(document))
        return re.search(r"\bNone\b", str(asked)) is not None
    return False


def _check_limits(where: str, name: str, task: Any, spec: TaskConfig, lm: Any) -> None:
    """Refuse what would fail at the first candidate: no chat template, no room to generate."""
    # Without a tokenizer here, the template is a server's.
    if spec.apply_chat_template and lm.tokenizer and lm.tokenizer.chat_template is None:
        raise InputError(
            f"{where}.apply_chat_template: the base model's tokenizer has no chat template; "
            "leave it out, or add one to the tokenizer"
        )
    if task.OUTPUT_TYPE == "generate_until":
        kwargs = normalize_gen_kwargs(task.config.generation_kwargs, lm.max_gen_toks)
        if kwargs["max_gen_toks"] >= lm.max_length:
            raise InputError(
                f"{where}.gen_kwargs: {name} may generate {kwargs['max_gen_toks']} tokens, but the "
                f"model reads {lm.max_length}; set a smaller max_gen_toks"
            )


@contextmanager
def _examples_collected(task: Any) -> Iterator[list[Any]]:
    """Collect the documents that the few-shot sampler hands out inside the block, each once."""
    drawn: list[Any] = []
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        yield drawn
        return
    seen: set[int] = set()
    sample = sampler.sample

    def remember(*args: Any, **kwargs: Any) -> Any:
        documents = sample(*args, **kwargs)
        for document in documents:
            # The sampler keeps its documents alive, so identities stay theirs.
            if id(document) not in seen:
                seen.add(id(document))
                drawn.append(document)
        return documents

    sampler.sample = remember
    try:
        yield drawn
    finally:
        del sampler.sample


def _by_document(instances: Sequence[Instance]) -> tuple[tuple[Instance, ...], ...]:
    """Group instances by document, both in lm-eval's order."""
    groups: dict[int, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.doc_id, []).append(instance)
    return tuple(tuple(sorted(group, key=lambda one: one.idx)) for group in groups.values())


def _excluded(where: str, name: str, ids: Sequence[str], drawn: Sequence[Any]) -> frozenset[str]:
    """Find the items whose document was drawn as an example for any document of the task."""
    examples = {document_hash(document) for document in drawn}
    excluded = frozenset(item for item in ids if item.partition("#")[0] in examples)
    if 2 * len(excluded) > len(ids):
        raise InputError(
            f"{where}.task: few-shot examples of {name!r} are drawn from the documents being "
            f"scored, and {len(excluded)} of {len(ids)} serve as one, so too few would be left; in "
            "the task's file set fewshot_split to another split, or fewshot_config: "
            "{sampler: first_n} to use the same few for all"
        )
    return excluded


def _shares(sizes: dict[str, int], spec: TaskConfig, group: Any | None) -> dict[str, float]:
    """Share the entry's weight among its tasks as lm-eval averages a group."""
    metric = spec.metric.partition(",")[0]
    by_name = any(
        each.metric == metric and not each.weight_by_size
        for each in (group.aggregate_metric_list or () if group is not None else ())
    )
    parts = {name: 1 if by_name else size for name, size in sizes.items()}
    total = sum(parts.values())
    return {name: spec.weight * part / total for name, part in parts.items()}
