"""Which documents are the same under another name."""

from __future__ import annotations

from evomerge.fitness.tasks.documents import marks
from evomerge.fitness.tasks.task_set import list_items

QUESTION = "If a train leaves at noon and another at one, which of them arrives first?"


def share(a, b):
    return bool(set(marks(a)) & set(marks(b)))


def test_a_record_with_other_fields_or_names_shares_a_mark_with_the_document():
    raw = {"question": QUESTION, "answer": "the first", "level": 3}
    assert share(raw, {"problem": QUESTION, "few_shot": True})
    assert share(raw, {"doc": {"q": [QUESTION.upper().replace(" ", "\n")]}})
    assert share({"q": "2 + 2", "a": 4}, {"question": "2 + 2", "target": "4"})


def test_documents_that_share_short_texts_or_nothing_share_no_mark():
    assert not share({"q": "2 + 2", "a": 4}, {"q": "2 + 3", "a": 4})
    assert not share({"q": QUESTION}, {"q": QUESTION.replace("noon", "two")})


def test_a_mark_begins_with_what_people_know_the_document_by():
    assert marks({"level": 3, "q": QUESTION})[0].startswith("if a train leaves at noon and")


def test_every_item_has_the_marks_of_its_document(tasks, docs):
    tasks.write("t", test=docs(5))
    (items,) = list_items(tasks.config({"task": "t"}))
    assert items.marks == tuple(marks(doc) for doc in docs(5))
