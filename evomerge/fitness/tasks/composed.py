"""Documents of several multiple-choice tasks in one prompt, each part scored by its own metric.

After Skill-Mix (Yu et al. 2023, arXiv:2310.17567) and CrossEval (Zhong et al. 2024,
arXiv:2409.19951), with right answers in the place of judges: the prompt holds all questions,
numbered, then the answers in their order. The first answer is the choice of the greatest
log-likelihood after the prompt; the second that after the prompt and the first answer, the model's
own, right or wrong; and so on. So all requests can be made before anything is answered: one for
each choice of a part after each way of answering the parts before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.config import ComposeTaskConfig, FitnessConfig, TaskConfig
from evomerge.fitness.tasks.documents import item_ids
from evomerge.fitness.tasks.lm_eval_task import LmEvalMetric, load_lm_eval_task
from evomerge.fitness.tasks.score_source import MEAN, ScoreSource
from evomerge.judging.constraints import Values

COMPOSED = "composed"
"""The kind of such a task."""
MOST_REQUESTS = 256
"""The most requests of one document."""


@dataclass(frozen=True, kw_only=True)
class Composed(ScoreSource):
    """Composed documents, and what is read off them: all parts, or one.

    Attributes:
        parts: the tasks, each with one metric, in the prompt's order.
        places: place of each document's part among its task's documents, (documents, parts).
        part: number of the part whose metric is read; None: the least of all parts' values.
    """

    parts: tuple[LmEvalMetric, ...]
    places: tuple[tuple[int, ...], ...]
    part: int | None = None

    @override
    def asked(self) -> str:
        # SHA-256 over the parts, and what is asked of their documents together.
        digest = hashlib.sha256(json.dumps([part.asked() for part in self.parts]).encode())
        for requests in self.requests:
            digest.update(json.dumps([request.args for request in requests]).encode())
        return digest.hexdigest()

    @override
    def marks(self, place: int) -> tuple[str, ...]:
        # Those of the parts' documents, and their hashes: all are dealt to one split.
        found = [
            (*part.marks(at), part.ids[at])
            for part, at in zip(self.parts, self.places[place], strict=True)
        ]
        return tuple(dict.fromkeys(mark for own in found for mark in own))

    @override
    def values(self, places: Sequence[int]) -> Values:
        if not places:
            return np.zeros(0)
        # 1. the answers to each part, after the model's own to those before
        for place in places:
            self._answer(place)
        # 2. each part by its task's own metric; its documents in their order, as filters see them
        found = np.stack([self._of_part(number, places) for number in range(len(self.parts))])
        return found.min(axis=0) if self.part is None else found[self.part]

    def _answer(self, place: int) -> None:
        """Hand the answers that count on to the requests of the parts' own documents."""
        ways, chosen, start = 1, 0, 0
        for part, at in zip(self.parts, self.places[place], strict=True):
            own = part.requests[at]
            first = start + chosen * len(own)
            answers = [one.resps[0] for one in self.requests[place][first : first + len(own)]]
            for request, answer in zip(own, answers, strict=True):
                request.resps, request.filtered_resps = [answer], {}
            best = int(np.argmax([likelihood for likelihood, _ in answers]))
            start += ways * len(own)
            ways, chosen = ways * len(own), chosen * len(own) + best

    def _of_part(self, number: int, places: Sequence[int]) -> NDArray[np.float64]:
        asked = [self.places[place][number] for place in places]
        order = np.argsort(asked, kind="stable")
        values = np.empty(len(asked))
        values[order] = self.parts[number].values([asked[i] for i in order])
        return values


def load_composed(
    position: int,
    config: ComposeTaskConfig,
    fitness: FitnessConfig,
    manager: TaskManager,
    lm: Any | None,
) -> list[Composed]:
    """Load the parts, join their documents, and build the requests.

    The documents of each part are taken in the order of their ids, without copies: the first of
    each are one composed document, and so on to the end of the smallest task.

    Args:
        position: of the entry.
        config: the entry.
        fitness: the section.
        manager: knows the parts.
        lm: lm-eval's object around the model; None where nothing is scored.

    Returns:
        the composed task, and each part in it as a measure without weight.

    Raises:
        InputError: a part cannot be loaded or is no multiple choice; names the key.
    """
    where = f"fitness.tasks[{position}].compose"
    parts = [_load_part(where, position, name, config, fitness, manager) for name in config.compose]
    # 1. which documents are joined
    ranked = [[part.ids.index(item) for item in sorted(set(_firsts(part.ids)))] for part in parts]
    places = tuple(zip(*ranked, strict=False))
    # 2. the questions in one prompt, and every way of answering
    documents, requests = [], []
    for index, joined in enumerate(places):
        own = [part.requests[at] for part, at in zip(parts, joined, strict=True)]
        documents.append({part.name: group[0].doc for part, group in zip(parts, own, strict=True)})
        prompt = _prompt(own)
        if config.apply_chat_template and lm is not None:
            prompt = lm.apply_chat_template([{"role": "user", "content": prompt}])
        asked = _ways(prompt, own)
        if len(asked) > MOST_REQUESTS:
            raise InputError(
                f"{where}: {config.task} would ask {len(asked)} requests of a document, over "
                f"{MOST_REQUESTS}; compose fewer tasks, or tasks of fewer choices"
            )
        made = enumerate(asked)
        about = (config.task, index, 1)
        requests.append(
            tuple(Instance("loglikelihood", documents[-1], args, i, about) for i, args in made)
        )
    whole = Composed(
        name=config.task,
        kind=COMPOSED,
        metric="all",
        filter="",
        higher_is_better=True,
        weight=config.weight,
        documents=tuple(documents),
        ids=item_ids(documents),
        excluded=frozenset(),
        requests=tuple(requests),
        test_set=next((part.test_set for part in parts if part.test_set), None),
        composed_of=tuple(config.compose),
        parts=tuple(parts),
        places=places,
    )
    return [
        whole,
        *(
            replace(
                whole,
                name=f"{config.task}.{part.name}",
                metric=part.metric,
                weight=0.0,
                part=number,
                composed_of=(),
            )
            for number, part in enumerate(parts)
        ),
    ]


def _load_part(
    where: str,
    position: int,
    name: str,
    config: ComposeTaskConfig,
    fitness: FitnessConfig,
    manager: TaskManager,
) -> LmEvalMetric:
    """Load one part by itself, without examples, as plain text.

    Raises:
        InputError: it cannot be joined with others; names why.
    """
    entry = next((task for task in fitness.lm_eval_tasks if task.task == name), None)
    metric = config.metrics.get(name, entry.metric if entry else "acc")
    asked = TaskConfig(task=name, metric=metric, num_fewshot=0)
    part, *more = load_lm_eval_task([(position, asked)], fitness, manager, None)
    if more:
        raise InputError(f"{where}: {name} is a group; name one of its tasks")
    if part.kind != "multiple_choice":
        raise InputError(
            f"{where}: {name} is of kind {part.kind}; only multiple-choice tasks can be joined"
        )
    if part.aggregate != MEAN or not part.higher_is_better:
        raise InputError(
            f"{where}: {metric} of {name} is no share of right answers; name another in metrics"
        )
    if any(len({request.args[0] for request in group}) > 1 for group in part.requests):
        raise InputError(
            f"{where}: {name} asks each choice after another prompt, so that it cannot be joined "
            "with others (winogrande does so); name another task, or another metric than its "
            "mutual information"
        )
    return part


def _firsts(ids: Sequence[str]) -> list[str]:
    """Return the ids of documents without those of their copies."""
    return [item for item in ids if "#" not in item]


def _prompt(parts: Sequence[Sequence[Instance]]) -> str:
    """Number the questions of one document, with empty lines between and after them."""
    numbered = [f"{n}. {requests[0].args[0]}\n\n" for n, requests in enumerate(parts, 1)]
    return "".join(numbered)


def _ways(prompt: str, parts: Sequence[Sequence[Instance]]) -> list[tuple[str, str]]:
    """List contexts and continuations: each part's choices after each way to answer those before.

    The choices of one way lie together, in the order of the choices before them.
    """
    found: list[tuple[str, str]] = []
    before = [prompt]
    for number, requests in enumerate(parts, 1):
        choices = [request.args[1] for request in requests]
        contexts = [f"{text}{number}." for text in before]
        found += [(context, choice) for context in contexts for choice in choices]
        before = [f"{context}{choice}\n" for context in contexts for choice in choices]
    return found
