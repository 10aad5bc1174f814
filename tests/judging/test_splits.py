"""Splits: disjoint, exact, and no document searched on in one task and tested on in another."""

from __future__ import annotations

import hashlib

import pytest

from evomerge.common.errors import InputError
from evomerge.config import SPLITS
from evomerge.judging.splits import deal, split_items

FRACTIONS = {"search": 0.5, "select": 0.2, "test": 0.3}


def ids(count, start=0):
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(start, start + count)]


def test_splits_are_disjoint_complete_and_exact():
    dealt = split_items(ids(107), FRACTIONS, "t")
    assert [len(dealt[s]) for s in ("search", "select", "test")] == [54, 21, 32]
    assert sorted(item for split in dealt.values() for item in split) == sorted(ids(107))


def test_counts_are_taken_as_they_are():
    dealt = split_items(ids(100), {"search": 10, "select": 20, "test": 30}, "t")
    assert {k: len(v) for k, v in dealt.items()} == {"search": 10, "select": 20, "test": 30}


def test_a_document_keeps_its_split_when_the_order_changes():
    assert split_items(ids(50), FRACTIONS, "t") == split_items(ids(50)[::-1], FRACTIONS, "u")


def test_copies_of_a_document_go_to_one_split():
    copies = [f"{item}#{n}" for item in ids(20) for n in (2, 3)]
    dealt = split_items([*ids(20), *copies], FRACTIONS, "t")
    homes = [{item.partition("#")[0] for item in dealt[s]} for s in dealt]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]


@pytest.mark.parametrize(
    ("count", "splits", "message"),
    [
        (3, {"search": 0.9, "select": 0.05, "test": 0.05}, "would be empty: 0.05 of the 3 items"),
        (
            20,
            {"search": 10, "select": 10, "test": 10},
            "asks for 30 items of each task, but 't' has 20",
        ),
    ],
)
def test_splits_that_cannot_be_filled_are_refused(count, splits, message):
    with pytest.raises(InputError, match=message):
        split_items(ids(count), splits, "t")


def test_copies_that_fit_nowhere_are_not_dropped():
    dealt = split_items([f"{item}{copy}" for item in ids(5) for copy in ("", "#2")], FRACTIONS, "t")
    assert sum(len(items) for items in dealt.values()) == 10


def test_copies_that_leave_a_split_empty_are_refused():
    one = ids(1)[0]
    with pytest.raises(InputError, match="would be empty"):
        split_items([one, *[f"{one}#{n}" for n in range(2, 9)]], FRACTIONS, "t")


def hashes(*numbers):
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def task(numbers, marks=lambda number: ()):
    """Items of numbered documents, with the marks each has."""
    return dict(zip(hashes(*numbers), map(marks, numbers), strict=True))


def homes(dealt):
    return {item: split for split in SPLITS for item in dealt[split]}


def contradictions(dealt, same=lambda item: item):
    """Documents that stand in different splits."""
    found = {}
    for splits in dealt.values():
        for item, split in homes(splits).items():
            found.setdefault(same(item), set()).add(split)
    return [document for document, splits in found.items() if len(splits) > 1]


@pytest.mark.parametrize("numbers", [range(40, 90), range(40)])
def test_tasks_that_share_nothing_or_everything_are_dealt_as_if_alone(numbers):
    """So that the splits of every study without a leak stay what they are."""
    tasks = {"a": task(range(40)), "b": task(numbers)}
    dealt, shared = deal(tasks, FRACTIONS)
    assert dealt == {name: split_items(list(t), FRACTIONS, name) for name, t in tasks.items()}
    assert shared == []


def test_documents_that_would_be_searched_and_tested_stay_in_one_split():
    tasks = {"large": task(range(400)), "small": task(range(350, 450)), "other": task("abc")}
    alone = {name: split_items(list(t), FRACTIONS, name) for name, t in tasks.items()}
    assert contradictions(alone), "dealt apart, they leak"
    dealt, (found,) = deal(tasks, FRACTIONS)
    assert contradictions(dealt) == []
    assert dealt["other"] == alone["other"]
    for name, splits in dealt.items():
        assert list(map(len, splits.values())) == list(map(len, alone[name].values()))
    assert (found.tasks, found.count) == (("large", "small"), 50)


def test_a_chain_of_tasks_is_kept_together():
    tasks = {"a": task(range(300)), "b": task(range(150, 450)), "c": task(range(400, 500))}
    dealt, shared = deal(tasks, FRACTIONS)
    assert contradictions(dealt) == []
    assert [found.tasks for found in shared] == [("a", "b"), ("b", "c")]


def test_copies_within_a_task_follow_their_document():
    copies = {f"{item}#{n}": () for item in hashes(*range(60)) for n in (2, 3)}
    tasks = {"a": task(range(60)) | copies, "b": task(range(30, 200))}
    dealt, shared = deal(tasks, FRACTIONS)
    assert shared
    assert contradictions(dealt, lambda item: item.partition("#")[0]) == []
    assert sum(len(items) for items in dealt["a"].values()) == 180


def test_another_record_of_a_document_is_known_by_a_text_of_its_own():
    """Another hash, the same question; and what every document says ties none together."""
    known = {hashes(1000 + n)[0]: hashes(n)[0] for n in range(100)}
    a = task(range(100), lambda n: [f"question {n}#1", "answer by yes or no#2"])
    b = task(range(1000, 1060), lambda n: [f"question {n - 1000}#1", "answer by yes or no#2"])
    alone = {name: split_items(list(t), FRACTIONS, name) for name, t in {"a": a, "b": b}.items()}
    same = lambda item: known.get(item, item)  # noqa: E731
    assert contradictions(alone, same)
    dealt, (found,) = deal({"a": a, "b": b}, FRACTIONS)
    assert contradictions(dealt, same) == []
    assert found.count == 60
    assert found.example.startswith("question ")
    assert "'a' and 'b' share 60 documents (for example 'question " in str(found)


def test_a_text_that_many_documents_have_ties_none_together():
    said = lambda number: ["choose one of the four answers below#1"]  # noqa: E731
    tasks = {"a": task(range(50), said), "b": task(range(50, 120), said)}
    _, shared = deal(tasks, FRACTIONS)
    assert shared == []


def test_with_counts_what_has_no_room_is_left_out():
    counts = {"search": 100, "select": 40, "test": 60}
    tasks = {"a": task(range(300)), "b": task(range(200, 500))}
    dealt, shared = deal(tasks, counts)
    assert shared
    assert contradictions(dealt) == []
    assert all({s: len(v) for s, v in dealt[t].items()} == counts for t in tasks)


def test_splits_that_cannot_be_had_without_a_leak_are_refused_by_name():
    """One document of a holds every question of b."""
    texts = [f"question {n}#1" for n in range(40)]
    a = task(range(10), lambda n: texts if n == 0 else [])
    b = task(range(100, 140), lambda n: [texts[n - 100]])
    with pytest.raises(InputError) as caught:
        deal({"a": a, "b": b}, FRACTIONS)
    message = str(caught.value)
    assert message.startswith("fitness.tasks: 'a' and 'b' share 1 document (for example 'question")
    assert "must not be tested on in another" in message
    assert "of 'b' with 0 items, and 1 are needed: leave one of the tasks out" in message
