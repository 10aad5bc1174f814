"""Experts' answers to prompts, asked once: their own greedy words, and what else they thought of.

They are statistics of the models alone, and lie with those: one file for each expert and set of
prompts, named by a digest of all that it depends on. The first worker asks the expert, others wait
for it and read the file; so does a campaign that is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from filelock import FileLock
from torch import Tensor

from evomerge.common.digest import content_digest
from evomerge.common.errors import CandidateError, InputError
from evomerge.materialize.statistics.store import Store
from evomerge.recipe import Recipe

FOLDER = "expert_answers"
"""The store's folder of answers."""
FORMAT = 1
"""Rises when what is stored, or how it is computed, changes."""


class ExpertAnswer(NamedTuple):
    """An expert's answer to one prompt.

    Attributes:
        tokens: int32 [tokens], the greedy answer, with the token that ends it.
        best: int32 [tokens], the likeliest token at each place, read as candidates are: it is the
            answer's, but for rounding between two ways of computing.
        ids: int32 [tokens, k], the likeliest tokens at each place.
        logs: float32 [tokens, k], their log-probabilities.
        log_rest: float32 [tokens], the log-probability of all others together.
        hidden: [tokens, hidden size], half-way through the layers; None unless asked for.
    """

    tokens: Tensor
    best: Tensor
    ids: Tensor
    logs: Tensor
    log_rest: Tensor
    hidden: Tensor | None


@dataclass(frozen=True)
class ExpertAnswers:
    """An expert's answers to some prompts, one after the other; the rest as in `ExpertAnswer`.

    Attributes:
        lengths: int32 [prompts], tokens of each answer.
    """

    lengths: Tensor
    tokens: Tensor
    best: Tensor
    ids: Tensor
    logs: Tensor
    log_rest: Tensor
    hidden: Tensor | None

    @classmethod
    def of(cls, answers: Sequence[ExpertAnswer]) -> ExpertAnswers:
        """Put answers one after the other."""
        lengths = torch.tensor([len(one.tokens) for one in answers], dtype=torch.int32)
        columns: list[Any] = [
            None if column[0] is None else torch.cat(column)
            for column in zip(*answers, strict=True)
        ]
        return cls(lengths, *columns)

    def each(self) -> list[ExpertAnswer]:
        """Return them one by one, as views."""
        sizes = self.lengths.tolist()
        columns = [
            [None] * len(sizes) if column is None else column.split(sizes)
            for column in (getattr(self, name) for name in ExpertAnswer._fields)
        ]
        return [ExpertAnswer(*one) for one in zip(*columns, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        found = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.nbytes for tensor in found if tensor is not None)


@dataclass(frozen=True)
class Question:
    """What decides an expert's answers, beside the expert and the prompts.

    Attributes:
        tokens: the most tokens of an answer.
        top_k: how many of the likeliest tokens are kept for each.
        hidden: whether hidden states are kept.
    """

    tokens: int
    top_k: int
    hidden: bool


Ask = Callable[[Recipe, Sequence[str], Question], ExpertAnswers]
"""Loads an expert, and returns its answers to prompts."""


class Experts:
    """Gives experts' answers: those in memory, those that are stored, and else asks."""

    def __init__(
        self, recipes: Mapping[str, Recipe], ask: Ask, store: Store | None, key: Sequence[Any]
    ) -> None:
        """Know whom to ask.

        Args:
            recipes: name → the expert as a recipe.
            ask: loads an expert and lets it answer.
            store: where answers are kept; None to keep them in memory.
            key: of what else the answers depend on: tokenizer, dtypes.
        """
        self._recipes, self._ask, self._store, self._key = recipes, ask, store, list(key)
        self._known: dict[tuple[str, str, Question], ExpertAnswer] = {}

    @property
    def keeps(self) -> bool:
        """True where answers are stored, so that it pays to ask for all at once."""
        return self._store is not None

    def answers(
        self, task: str, expert: str, prompts: Sequence[str], question: Question
    ) -> list[ExpertAnswer]:
        """Return an expert's answers to prompts.

        Args:
            task: names the prompts in messages.

        Raises:
            InputError: there is no such expert, or what it says is not finite.
        """
        if missing := [p for p in prompts if (expert, p, question) not in self._known]:
            asked = list(dict.fromkeys(missing))
            found = self._stored(task, expert, asked, question).each()
            self._known |= {
                (expert, prompt, question): answer
                for prompt, answer in zip(asked, found, strict=True)
            }
        return [self._known[expert, prompt, question] for prompt in prompts]

    def _stored(
        self, task: str, expert: str, prompts: Sequence[str], question: Question
    ) -> ExpertAnswers:
        """Read the stored answers, or ask, and store them."""
        if expert not in self._recipes:
            raise InputError(
                f"{task}: no expert {expert!r} to ask; there are {', '.join(self._recipes)}"
            )
        path = self._place(expert, prompts, question)
        if path is None or self._store is None:
            return self._asked(task, expert, prompts, question)
        # one worker of a machine asks, the others wait for it
        with _alone(path):
            if found := self._store.find(path, ExpertAnswers):
                return cast(ExpertAnswers, found)
            asked = self._asked(task, expert, prompts, question)
            kept = self._store.keep(path, asked) and self._store.find(path, ExpertAnswers)
        return cast(ExpertAnswers, kept or asked)  # mapped, where they were kept

    def _asked(
        self, task: str, expert: str, prompts: Sequence[str], question: Question
    ) -> ExpertAnswers:
        try:
            return self._ask(self._recipes[expert], prompts, question)
        except CandidateError as error:
            raise InputError(
                f"{task}: {expert} cannot be asked ({error}); name another expert"
            ) from None

    def _place(self, expert: str, prompts: Sequence[str], question: Question) -> Path | None:
        """The file of the answers; None where they cannot be kept."""
        digests = self._store and self._store.digests_of([expert])
        if self._store is None or not digests:
            return None
        asked = [question.tokens, question.top_k, question.hidden]
        parts = [FORMAT, digests, self._key, list(prompts), asked]
        return self._store.folder / FOLDER / f"{content_digest(parts)}.safetensors"


def _alone(path: Path) -> AbstractContextManager[Any]:
    """Lock a file on this machine; without a lock where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return nullcontext()
    writable = os.access(path.parent, os.W_OK)
    return FileLock(f"{path}.lock") if writable else nullcontext()
