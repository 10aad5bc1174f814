"""Calibration has documents of its own, set aside of a task; others are refused by name."""

from __future__ import annotations

import json

import pytest
import tiny

from evomerge.campaign.calibration_split import CalibrationSplit, standing_in
from evomerge.campaign.setup import deal_items, prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.fitness.tasks.task_set import list_items


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    tiny.save_campaign(folder)
    tiny.save_task(folder / "tasks", name="other", items=20, task_seed=5)
    lines = (folder / "tasks/pick.jsonl").read_text().splitlines()
    shared = (folder / "tasks/other.jsonl").read_text() + "\n".join(lines[:5]) + "\n"
    (folder / "tasks/other.jsonl").write_text(shared)  # 20 of its own, 5 of pick's
    return folder


def dealt(folder, calibration):
    config = load_campaign(tiny.save_campaign(folder, calibration=calibration))
    tasks = list_items(config.fitness)
    split = CalibrationSplit(config, tasks)
    items, _ = deal_items(tasks, config, split.aside)
    return split, items


def items_of(splits):
    return [item for tasks in splits.values() for items in tasks.values() for item in items]


def texts(folder, *lines):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_documents_of_a_searched_task_are_set_aside(folder):
    split, items = dealt(folder, {"task": "pick", "samples": 20})
    found = split.texts(items)
    assert found.keys() == {"base", "math", "lang"}
    assert len(found["math"]) == 20
    assert len({*items_of(items)}) == 40
    assert not {*items_of(items)} & split.aside["pick"]
    # a text is the prompt with its right answer
    documents = [json.loads(x) for x in (folder / "tasks/pick.jsonl").read_text().splitlines()]
    right = {f"{d['q']} {d['options'][d['answer']]}" for d in documents}
    assert {text.text for text in found["math"]} <= right


def test_splits_without_calibration_are_as_they_were(folder):
    config = load_campaign(tiny.save_campaign(folder))
    setup = prepare(config)
    assert setup.calibration == {}
    assert "calibration" not in setup.identity
    assert len(items_of(setup.items)) == 60


def test_the_texts_belong_to_a_studys_identity(folder):
    given = {"documents": texts(folder, {"text": "w1 w2"}), "tokens": 8}
    setup = prepare(load_campaign(tiny.save_campaign(folder, calibration=given)))
    assert setup.identity["calibration"]["math"][1] == 8


def test_a_task_of_its_own_lends_what_stands_in_no_split(folder):
    split, items = dealt(folder, {"per_expert": {"math": {"task": "other"}}})
    found = split.texts(items)
    assert found.keys() == {"math"}
    assert len(found["math"]) == 20
    assert len(items_of(items)) == 60


def test_a_line_that_stands_in_a_split_is_refused_by_name(folder):
    split, items = dealt(folder, {"task": "pick", "samples": 20})
    documents = [json.loads(x) for x in (folder / "tasks/pick.jsonl").read_text().splitlines()]
    config = load_campaign(tiny.save_campaign(folder))
    [test] = [
        d
        for d, i in zip(documents, list_items(config.fitness)[0].ids, strict=True)
        if i == items["test"]["pick"][0]
    ]
    leaked = {"prompt": test["q"], "completion": f" {test['options'][test['answer']]}"}
    path = texts(folder, {"text": "w1 w2 w3"}, leaked)
    split, items = dealt(folder, {"documents": path})
    with pytest.raises(InputError, match=r"calibration: .*texts.jsonl, line 2: .* stands in the"):
        split.texts(items)


def test_documents_of_the_audit_are_refused_and_not_lent(folder):
    audited = {"audit": {"tasks": [{"task": "other"}]}}
    fitness = {**tiny.campaign_data()["fitness"], **audited}
    [document, *_] = map(json.loads, (folder / "tasks/other.jsonl").read_text().splitlines())
    leaked = {"prompt": document["q"], "completion": f" {document['options'][document['answer']]}"}
    given = {"documents": texts(folder, {"text": "w1 w2 w3"}, leaked)}
    path = tiny.save_campaign(folder, calibration=given, fitness=fitness)
    with pytest.raises(InputError, match=r"texts.jsonl, line 2: .* stands in fitness.audit too"):
        prepare(load_campaign(path))
    path = tiny.save_campaign(folder, calibration={"task": "other"}, fitness=fitness)
    with pytest.raises(InputError, match=r"calibration: no text is left that stands in no other"):
        prepare(load_campaign(path))


def test_more_than_half_of_a_task_is_refused(folder):
    with pytest.raises(InputError, match=r"calibration: 31 of the 60 .* ask for at most 30"):
        dealt(folder, {"task": "pick", "samples": 31})


def test_copies_are_found_whatever_their_spaces_and_cases():
    long = "a question of many words that a person has written for a test of models"
    held = {"search": ["12 + 7 = | 19"], "test": [long]}
    found = standing_in(["12+7=19", long.upper() + " Indeed.", "something else"], held)
    assert found == {0: "search", 1: "test"}
