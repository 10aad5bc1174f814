"""Agreement with an expert on prompts without labels.

A prompt's score is the share of the tokens of the expert's own greedy answer at which the model's
likeliest token is the expert's, with the answer so far before it. It is counted in greedy tokens,
not in probabilities, because those are what a user reads: a merge whose distributions are flatter
than the expert's, as merging makes them, loses nothing as long as it says the same. The expert
itself scores 1, and the numbers of different experts can be compared. A gradient follows the
divergence of the distributions (`document_loss.ExpertLoss`), which is smooth where this is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.config import AgreementTaskConfig
from evomerge.fitness.answers import AGREEMENT
from evomerge.fitness.expert_answers import ExpertAnswer
from evomerge.fitness.tasks.documents import item_ids
from evomerge.fitness.tasks.own_metric import read_documents
from evomerge.fitness.tasks.score_source import ScoreSource
from evomerge.judging.constraints import Values

KEYS = ("prompt", "text")
"""The keys of a prompt in its file, the first that is there."""


@dataclass(frozen=True, kw_only=True)
class Agreement(ScoreSource):
    """Prompts, and the expert whose answers to them count.

    Attributes:
        teacher: the expert's name, or `base`.
        tokens: the most tokens of an answer.
        chat: whether prompts are put in the chat template.
    """

    teacher: str
    tokens: int
    chat: bool

    @override
    def asked(self) -> str:
        # SHA-256 over the prompts, who answers them, and how.
        said = [self.teacher, self.tokens, self.chat, self.documents]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def compare_with(self, place: int, answer: ExpertAnswer) -> None:
        """Take in the expert's answer to a prompt, with which models are compared from now on."""
        [request] = self.requests[place]
        request.arguments = (*request.args[:2], answer)

    @override
    def values(self, places: Sequence[int]) -> Values:
        requests = [self.requests[place][0] for place in places]
        assert all(request.args[2] is not None for request in requests), "the expert was not asked"
        return np.array([request.resps[0] for request in requests], np.float64)


def load_agreement(where: str, config: AgreementTaskConfig, lm: Any | None) -> Agreement:
    """Read the prompts.

    Args:
        where: the entry's key, `fitness.tasks[1]`.
        config: the entry.
        lm: lm-eval's object around the model; None where nothing is scored.

    Raises:
        InputError: the file cannot be read or holds no prompts; names key, file and line.
    """
    about, where = config.agreement, f"{where}.agreement.prompts"
    found = read_documents(where, Path(about.prompts))
    texts = [
        _prompt(f"{where}: {about.prompts}, line {line}", document)
        for line, document in found.items()
    ]
    if about.apply_chat_template and lm is not None:
        texts = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
    documents = tuple(found.values())
    requests = [
        (Instance(AGREEMENT, document, (text, about.tokens, None), 0, (config.task, index, 1)),)
        for index, (text, document) in enumerate(zip(texts, documents, strict=True))
    ]
    return Agreement(
        name=config.task,
        kind=AGREEMENT,
        metric=AGREEMENT,
        filter="",
        higher_is_better=True,
        weight=config.weight,
        documents=documents,
        ids=item_ids(documents),
        excluded=frozenset(),
        requests=tuple(requests),
        teacher=about.expert,
        tokens=about.tokens,
        chat=about.apply_chat_template,
    )


def _prompt(where: str, document: dict[str, Any]) -> str:
    """A document's prompt; `where` names its line."""
    key = next((key for key in KEYS if key in document), None)
    if key is None:
        raise InputError(
            f"{where}: no {' or '.join(KEYS)}; keys: {', '.join(document) or 'none'}; write "
            '{"prompt": "…"}'
        )
    text = document[key]
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{where}: {key} is {str(text)[:40]!r}, not a text; write one, or leave the line out"
        )
    return text
