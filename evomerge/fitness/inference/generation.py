"""Generate greedy answers, equal to lm-eval's, in a loop that lets rows go when they are done.

lm-eval generates in batches that run until their last row has stopped, and cuts the texts
afterwards. Here a row that has stopped leaves, waiting requests take the free places when half are
free, and prompts that begin alike are read once (`prefix_packing`). What is not plain greedy
decoding is left to lm-eval.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from torch import Tensor
from transformers import DynamicCache

from evomerge.common.errors import CandidateError
from evomerge.fitness.inference.batch import Batch, PassShape
from evomerge.fitness.inference.forward import Forward
from evomerge.fitness.inference.kv_cache import ROOM, RowsCache, joined, unpacked
from evomerge.fitness.inference.memory import Budget, ran_out_of_memory
from evomerge.fitness.inference.prefix_packing import Pack, Tokens, by_length, pack_rows
from evomerge.fitness.tasks.response_tokens import end_tokens

LEAVING = 8
"""One row in so many must be done before those that are done leave, since that copies the rest."""
_OF_SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "top_h"})
_PLAIN = _OF_SAMPLING | {
    *("transformers_version", "_from_model_config", "max_length", "use_cache", "do_sample"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
"""Settings of a model's generation that leave greedy decoding plain, or that lm-eval overrides."""


class Answer(NamedTuple):
    """A generated answer.

    Attributes:
        text: as lm-eval gives it.
        tokens: up to and including the one that ends it.
        stop: the strings that could have ended it.
    """

    text: str
    tokens: list[int]
    stop: list[str]


@dataclass(frozen=True)
class _Prompt:
    """A context as the model reads it, and how its answer ends.

    Attributes:
        tokens: int32 [tokens], what the model reads.
        stop: the strings at which an answer is cut.
        lookback: number of an answer's last tokens in which they are looked for.
        most: most tokens of an answer.
    """

    tokens: Tokens
    stop: list[str]
    lookback: int
    most: int


@dataclass
class _Running:
    """Rows being generated, side by side.

    Attributes:
        numbers: the number of each row's prompt.
        said: tokens of each row's answer so far.
        cache: keys and values of everything but the last token said; None where there are no rows.
        live: places of the rows whose answers are not done.
    """

    numbers: list[int] = field(default_factory=list)
    said: list[list[int]] = field(default_factory=list)
    cache: RowsCache | None = None
    live: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.live = set(range(len(self.numbers)))

    @classmethod
    def joined(cls, parts: Sequence[_Running]) -> _Running:
        """Put all rows side by side; none may be done."""
        return cls(
            [number for part in parts for number in part.numbers],
            [said for part in parts for said in part.said],
            joined([part.cache for part in parts if part.cache is not None]),
        )

    def tidy(self) -> None:
        """Drop the rows that are done."""
        places = sorted(self.live)
        if self.cache is not None and places:
            self.cache.keep(places)
        else:
            self.cache = None
        self.numbers = [self.numbers[place] for place in places]
        self.said = [self.said[place] for place in places]
        self.live = set(range(len(places)))


class Greedy:
    """Generates with the present weights of a model.

    Every answer is what lm-eval gives when it generates it alone.
    """

    def __init__(self, lm: HFLM, forward: Forward, budget: Budget, rows: int) -> None:
        """Prepare to generate at most `rows` answers at once; halved when memory runs out."""
        self._lm = lm
        self._forward = forward
        self._budget = budget
        self._most_rows = rows
        self._prompts: list[_Prompt] = []
        self._known: dict[tuple[str, str], int] = {}
        self._ends = end_tokens(lm)
        self._plain: dict[str, bool] = {}  # by settings
        self._own_plain = not own_settings(lm)

    def takes(self, settings: Mapping[str, Any]) -> bool:
        """Say whether a request's settings, and the model's, ask for plain greedy decoding."""
        key = repr(settings)
        if key not in self._plain:
            asked = normalize_gen_kwargs(dict(settings), self._lm.max_gen_toks)
            known = asked.keys() <= {"until", "max_gen_toks", "do_sample", "temperature"}
            greedy = not asked["do_sample"] and not asked.get("temperature")
            self._plain[key] = known and greedy and self._own_plain
        return self._plain[key]

    def encode(self, context: str, settings: Mapping[str, Any]) -> int:
        """Number a prompt, and tokenise it when it is first met."""
        key = (context, repr(settings))
        if key not in self._known:
            tokens, stop, asked = read_prompt(self._lm, context, settings)
            # As lm-eval: a string may come in other tokens than it is made of by itself.
            lengths = [len(self._lm.tokenizer.encode(s, add_special_tokens=False)) for s in stop]
            self._known[key] = len(self._prompts)
            self._prompts.append(
                _Prompt(
                    tokens=tokens.numpy().astype(np.int32),
                    stop=stop,
                    lookback=max(lengths, default=0) + 2,
                    most=asked["max_gen_toks"],
                )
            )
        return self._known[key]

    def passes(self, requests: Sequence[Instance]) -> list[PassShape]:
        """The forward passes that answer the requests, planned and not run.

        Prompts are read in their batches; answers are taken to be as long as they may be, in as
        many steps for all rows of a group.
        """
        asked = self._longest_first({self.encode(*request.args) for request in requests})
        found = []
        for start in range(0, len(asked), self._most_rows):
            rows = asked[start : start + self._most_rows]
            longest = len(self._prompts[rows[0]].tokens)
            most = max(self._prompts[number].most for number in rows)
            for packed in self._packed(rows):
                batch, count = Batch.of(packed), sum(len(pack.paths) for pack in packed)
                # Keys and values are held twice while rows are taken out of their packs.
                found.append(PassShape.of(batch, count, cached=batch.size + count * longest))
            held = len(rows) * (longest + most + ROOM)
            steps = PassShape(len(rows), 1, len(rows), False, longest + most // 2, held, most - 1)
            found.append(steps)
        return found

    def __call__(self, requests: Sequence[Instance]) -> list[Answer]:
        """Answer requests, in their order.

        Raises:
            CandidateError: logits are not finite.
        """
        asked = [self.encode(*request.args) for request in requests]
        answers: dict[int, Answer] = {}
        while remaining := {*asked} - answers.keys():
            try:
                for number, said in self._generated(self._longest_first(remaining)):
                    answers[number] = self._answer(self._prompts[number], said)
            except Exception as error:
                if self._most_rows == 1 or not ran_out_of_memory(error):
                    raise
                self._most_rows = max(1, min(self._most_rows, len(remaining)) // 2)
                self._budget.halve(self._budget.tokens)
        return [answers[number] for number in asked]

    def _longest_first(self, numbers: Collection[int]) -> list[int]:
        return sorted(numbers, key=lambda n: (-len(self._prompts[n].tokens), n))

    def _answer(self, prompt: _Prompt, said: list[int]) -> Answer:
        return Answer(answer_text(self._lm, said, prompt.stop), said, prompt.stop)

    @torch.inference_mode()
    def _generated(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield prompts with the tokens of their answers, as they are done."""
        waiting: deque[int] = deque(numbers)
        running = _Running()
        while waiting or running.live:
            # 1. When half of the places are free, waiting prompts take them and say a first token;
            #    else every row says one more.
            free = self._most_rows - len(running.live)
            if waiting and 2 * free >= self._most_rows:
                running.tidy()
                admitted = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                running = _Running.joined([running, *self._started(admitted)])
            else:
                self._step(running)
            # 2. Rows whose answer has ended are done.
            for place in list(running.live):
                number, said = running.numbers[place], running.said[place]
                if self._ended(self._prompts[number], said):
                    running.live.discard(place)
                    yield number, said
            # 3. They leave when they are enough to be worth copying the rest.
            if len(running.live) * LEAVING <= len(running.numbers) * (LEAVING - 1):
                running.tidy()

    def _packed(self, numbers: Sequence[int]) -> Iterator[list[Pack]]:
        """Yield batches of packs in which the prompts are read."""
        rows = {number: self._prompts[number].tokens for number in numbers}
        packs = pack_rows(rows, self._budget.tokens, self._forward.worth)
        return by_length(packs, self._budget.tokens)

    def _started(self, numbers: Sequence[int]) -> Iterator[_Running]:
        """Read prompts, and say the first token of their answers."""
        for packed in self._packed(numbers):
            paths = {
                number: (i, path)
                for i, pack in enumerate(packed)
                for number, path in pack.paths.items()
            }
            ends = torch.tensor([(i, path[-1]) for i, path in paths.values()])
            batch, cache = Batch.of(packed), DynamicCache()
            with self._budget.measured(batch.size):
                logits = self._forward.logits(batch, ends[:, 0], ends[:, 1], cache)
            said = [[token] for token in _likeliest(logits)]
            yield _Running(list(paths), said, unpacked(cache, list(paths.values())))

    def _step(self, running: _Running) -> None:
        """Say one more token in every row."""
        assert running.cache is not None
        live = [place in running.live for place in range(len(running.numbers))]
        logits = self._forward.step([said[-1] for said in running.said], live, running.cache)
        tokens = _likeliest(logits)
        for place in running.live:
            running.said[place].append(tokens[place])

    def _ended(self, prompt: _Prompt, said: Sequence[int]) -> bool:
        """Say whether lm-eval would stop here if it generated this answer alone."""
        if len(said) == prompt.most or said[-1] in self._ends:
            return True
        text = self._lm.tokenizer.decode(said[-prompt.lookback :])
        return any(string in text for string in prompt.stop)


def own_settings(lm: HFLM) -> dict[str, Any]:
    """Return the model's own settings of generation that make more of it than greedy decoding."""
    own = lm.model.generation_config.to_diff_dict()
    said = {name: value for name, value in own.items() if not (value is None or value is False)}
    return {name: value for name, value in said.items() if name not in _PLAIN}


def read_prompt(
    lm: HFLM, context: str, settings: Mapping[str, Any]
) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Read a request of `generate_until` as lm-eval does.

    Returns:
        The prompt's tokens, int64 [tokens], cut on the left so that the answer has room; the
        strings at which the answer is cut; and lm-eval's settings, `max_gen_toks` among them.
    """
    asked = dict(normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
    room = lm.max_length - asked["max_gen_toks"]
    tokens, _ = lm.tok_batch_encode([context], left_truncate_len=room)
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    return tokens[0], handle_stop_sequences(asked["until"], eos), asked


def answer_text(lm: HFLM, said: list[int], stop: list[str]) -> str:
    """Return an answer's text as lm-eval gives it, without what follows a stop string."""
    return postprocess_generated_text(lm.tok_decode(said), stop, None)


def _likeliest(logits: Tensor) -> list[int]:
    """Choose the likeliest token of each row, as transformers does.

    Raises:
        CandidateError: logits are not finite.
    """
    if not bool(logits.isfinite().all()):
        raise CandidateError("non-finite logits while generating")
    return logits.float().argmax(-1).tolist()
