"""Experts are asked once: their answers lie with the statistics, under all that decides them."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from evomerge.common.errors import CandidateError, InputError
from evomerge.fitness.expert_answers import FOLDER, ExpertAnswer, ExpertAnswers, Experts, Question
from evomerge.materialize.statistics.store import Store

QUESTION = Question(tokens=3, top_k=2, hidden=True)
DIGESTS = {"base": "b", "math": "m", "lang": "l"}
RECIPES = {name: name for name in DIGESTS}


def answer(length, hidden=True):
    ids = torch.arange(2 * length, dtype=torch.int32).reshape(length, 2)
    return ExpertAnswer(
        tokens=ids[:, 0].clone(),
        best=ids[:, 1].clone(),
        ids=ids,
        logs=-ids.float(),
        log_rest=torch.zeros(length),
        hidden=torch.ones(length, 4) if hidden else None,
    )


class Asked:
    """Answers prompts by their lengths, and counts how often it is asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, recipe, prompts, question):
        self.calls.append((recipe, tuple(prompts), question))
        return ExpertAnswers.of([answer(len(prompt), question.hidden) for prompt in prompts])


def experts(folder, asked, digests=DIGESTS, key=("tokenizer",)):
    return Experts(RECIPES, asked, folder and Store(folder, digests), key)


def same(one, other):
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("hidden", [True, False])
def test_answers_put_together_are_the_answers(hidden):
    several = [answer(3, hidden), answer(1, hidden), answer(2, hidden)]
    together = ExpertAnswers.of(several)
    for one, other in zip(together.each(), several, strict=True):
        assert same(one, other)
    found = [getattr(together, field.name) for field in fields(together)]
    assert together.nbytes == sum(t.nbytes for t in found if t is not None)


@pytest.mark.parametrize("question", [QUESTION, Question(3, 2, hidden=False)])
def test_another_worker_reads_what_the_first_asked(question, tmp_path):
    first, second = Asked(), Asked()
    prompts = ["ab", "abc", "ab"]
    told = experts(tmp_path, first).answers("t", "math", prompts, question)
    read = experts(tmp_path, second).answers("t", "math", prompts, question)
    assert first.calls == [("math", ("ab", "abc"), question)]
    assert second.calls == []
    assert [len(one.tokens) for one in read] == [2, 3, 2]
    for one, other in zip(told, read, strict=True):
        assert same(one, other)


def test_whatever_decides_the_answers_asks_again(tmp_path):
    asked, prompts = Asked(), ["ab"]

    def ask(name="math", prompts=prompts, question=QUESTION, **changes):
        experts(tmp_path, asked, **changes).answers("t", name, prompts, question)

    ask()
    ask()
    assert len(asked.calls) == 1
    ask(name="lang")
    ask(name="base")
    ask(prompts=["abc"])
    ask(question=Question(4, 2, hidden=True))
    ask(question=Question(3, 1, hidden=True))
    ask(digests={**DIGESTS, "math": "another"})
    ask(key=("another tokenizer",))
    assert len(asked.calls) == 8


def test_a_damaged_file_is_asked_for_again(tmp_path):
    asked = Asked()
    experts(tmp_path, asked).answers("t", "math", ["ab"], QUESTION)
    [path] = (tmp_path / FOLDER).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-2])
    experts(tmp_path, asked).answers("t", "math", ["ab"], QUESTION)
    assert len(asked.calls) == 2


def test_without_a_store_answers_stay_in_memory(tmp_path):
    asked = Asked()
    one = experts(None, asked)
    one.answers("t", "math", ["ab", "abc"], QUESTION)
    one.answers("t", "math", ["abc", "abcd"], QUESTION)
    assert [call[1] for call in asked.calls] == [("ab", "abc"), ("abcd",)]


def test_an_expert_that_cannot_be_asked_is_named(tmp_path):
    def broken(*_):
        raise CandidateError("non-finite logits")

    with pytest.raises(InputError, match=r"t: math cannot be asked \(non-finite logits\); name an"):
        experts(None, broken).answers("t", "math", ["ab"], QUESTION)
    with pytest.raises(InputError, match="t: no expert 'art' to ask; there are base, math, lang"):
        experts(None, Asked()).answers("t", "art", ["ab"], QUESTION)
