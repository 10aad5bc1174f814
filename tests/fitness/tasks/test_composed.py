"""Documents of several tasks in one prompt: each part is answered after the model's own answers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fitness_reference import scores
from lm_eval.api.instance import Instance

from evomerge.common.errors import InputError
from evomerge.config import parse_campaign
from evomerge.fitness.tasks.documents import document_hash
from evomerge.fitness.tasks.task_set import list_items
from evomerge.judging.splits import deal

SPLITS = {"search": 0.5, "select": 0.2, "test": 0.3}


@pytest.fixture
def both(tasks, docs):
    """Tasks `a` of 24 documents and `b` of 15, all others than `a`'s."""
    tasks.write("a", test=docs(24))
    tasks.write("b", test=docs(15, seed=1))
    return tasks


def joined(first, second):
    """The documents of two tasks in the order of their hashes, as many as the smaller has."""
    return list(zip(*(sorted(d, key=document_hash) for d in (first, second)), strict=False))


def by_hand(lm, context, document):
    """The log-likelihoods of a document's choices after a context."""
    asked = [(context, f" {choice}") for choice in document["choices"]]
    requests = [Instance("loglikelihood", {}, args, 0, ("t", 0, 1)) for args in asked]
    return [likelihood for likelihood, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def test_a_part_is_scored_by_its_own_metric_after_the_models_own_answers(lm, both, docs):
    entry = {"compose": ["a", "b"], "metrics": {"b": "acc_norm"}}
    found = scores(lm, both.config(entry))
    expected = {"a+b": [], "a+b.a": [], "a+b.b": []}
    for first, second in joined(docs(24), docs(15, seed=1)):
        asked = (f"{n}. q : {d['question']} a :\n\n" for n, d in enumerate((first, second), 1))
        prompt = "".join(asked) + "1."
        likelihoods = by_hand(lm, prompt, first)
        said = int(np.argmax(likelihoods))
        right = float(said == first["gold"])
        after = by_hand(lm, f"{prompt} {first['choices'][said]}\n2.", second)
        lengths = [len(choice) for choice in second["choices"]]
        also = float(np.argmax(np.array(after) / lengths) == second["gold"])
        for name, value in zip(expected, (min(right, also), right, also), strict=True):
            expected[name].append(value)
    assert {name: sorted(own.values()) for name, own in found.items()} == {
        name: sorted(own) for name, own in expected.items()
    }
    ids = [document_hash({"a": x, "b": y}) for x, y in joined(docs(24), docs(15, seed=1))]
    assert [found["a+b"][item] for item in ids] == expected["a+b"]
    assert 0 < sum(expected["a+b.a"]) < 15


def test_every_way_to_answer_is_asked_and_counts_but_once(both):
    whole, first, second = list_items(both.config({"compose": ["a", "b"], "weight": 2}))
    assert [(t.task, t.weight) for t in (whole, first, second)] == [
        ("a+b", 2.0),
        ("a+b.a", 0.0),
        ("a+b.b", 0.0),
    ]
    assert whole.composed_of == ("a", "b")
    assert len(whole.ids) == 15


def test_what_is_joined_does_not_depend_on_the_order_in_files(both, docs):
    entry = {"compose": ["a", "b"]}
    [before, *_] = list_items(both.config(entry))
    shuffled = docs(24)
    random.Random(0).shuffle(shuffled)
    both.write("a", test=shuffled)
    [after, *_] = list_items(both.config(entry))
    assert after.ids == before.ids


def test_documents_stay_in_their_split(tasks, docs):
    """Also copies, and documents of which no text is long enough to know them by."""
    again = docs(20)
    tasks.write("a", test=[*again, again[0], again[5]])
    tasks.write("b", test=docs(30, seed=1))
    tasks.write("c", test=docs(25, seed=2))
    entries = [{"task": name} for name in "abc"]
    composed = [{"compose": ["a", "b"]}, {"compose": ["a", "c"]}, {"compose": ["c", "b", "a"]}]
    found = [t for t in list_items(tasks.config(*entries, *composed)) if t.weight > 0]
    marks = {t.task: dict(zip(t.ids, t.marks, strict=True)) for t in found}
    dealt, _ = deal(marks, SPLITS)
    home = {
        (task, item): split
        for task, splits in dealt.items()
        for split, items in splits.items()
        for item in items
    }
    for task in found:
        for item, own in zip(task.ids, task.marks, strict=True) if task.composed_of else ():
            there = {home[part, mark] for part in "abc" for mark in own if (part, mark) in home}
            assert there == {home[task.task, item]}
    assert home["a", document_hash(again[0])] == home["a", f"{document_hash(again[0])}#2"]
    assert all(dealt[name]["search"] for name in dealt)


def test_three_tasks_are_answered_one_after_the_other(lm, tasks, docs):
    for seed, name in enumerate("abc"):
        tasks.write(name, test=docs(6, seed=seed))
    found = scores(lm, tasks.config({"compose": ["a", "b", "c"], "task": "all"}))
    parts = np.array([list(found[f"all.{name}"].values()) for name in "abc"])
    np.testing.assert_array_equal(parts.min(axis=0), list(found["all"].values()))


def test_a_chat_template_is_around_the_questions(lm, both):
    plain = scores(lm, both.config({"compose": ["a", "b"]}))
    chat = scores(lm, both.config({"compose": ["a", "b"], "apply_chat_template": True}))
    assert plain["a+b"].keys() == chat["a+b"].keys()
    assert plain != chat


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"compose": ["a", "text"]}, "text is of kind generate_until; only multiple-choice tasks"),
        ({"compose": ["a", "pairs"]}, "pairs asks each choice after another prompt"),
        ({"compose": ["a", "many"]}, "would ask 404 requests of a document, over 256"),
    ],
)
def test_what_cannot_be_joined_is_refused(both, docs, entry, said):
    both.write("text", "generate_until")
    both.write("pairs", doc_to_text="gold", doc_to_target=" {{word}}")
    many = [{**document, "choices": [f"w{i}" for i in range(100)]} for document in docs(5)]
    both.write("many", test=many)
    entry = {**entry, "metrics": {"text": "print"} if "text" in entry["compose"] else {}}
    with pytest.raises(InputError, match=said):
        list_items(both.config(entry))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"compose": ["a"]}, "at least 2"),
        ({"compose": ["a", "a"]}, "names a task twice"),
        ({"compose": ["a", "b"], "metrics": {"c": "acc"}}, "metrics: c is none of the parts"),
    ],
)
def test_entries_that_join_nothing_are_refused_by_their_key(entry, said):
    data = {
        "name": "t",
        "models": {"base": "b", "experts": {"x": "e"}},
        "space": {"weights": {"method": "linear"}},
        "fitness": {"tasks": [entry]},
    }
    with pytest.raises(InputError, match=r"fitness\.tasks\.0") as caught:
        parse_campaign(data, "here")
    assert said in str(caught.value)
