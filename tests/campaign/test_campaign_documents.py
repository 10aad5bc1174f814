"""Documents that must not be searched on: another task's test items, and public test sets."""

from __future__ import annotations

import json
from dataclasses import replace

import datasets
import pytest
import yaml
from rich.console import Console
from running import run
from typer.testing import CliRunner

from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.config import SPLITS, load_campaign
from evomerge.fitness.tasks.task_set import list_items
from evomerge.preflight.forecast import foresee
from evomerge.preflight.show import preflight_table
from evomerge.report.tables import best_table
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

TWO_TASKS = ["fitness.tasks=[{task: pick, num_fewshot: 0}, {task: again, num_fewshot: 0}]"]


def rename(folder, share):
    """A task `again` that has some of pick's documents, with a field more, and some of its own."""
    tasks = folder / "tasks"
    lines = (tasks / "pick.jsonl").read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    for number, document in enumerate(documents):
        if number >= share:
            document["q"] += " w1 w2 w3"
        document["source"] = "elsewhere"
    text = "".join(json.dumps(document) + "\n" for document in documents)
    (tasks / "again.jsonl").write_text(text)
    task = yaml.safe_load((tasks / "pick.yaml").read_text())
    task |= {"task": "again", "dataset_kwargs": {"data_files": {"test": "again.jsonl"}}}
    (tasks / "again.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture
def long_questions(tiny_folder):
    """Questions long enough to be told apart by their text."""
    path = tiny_folder / "tasks" / "pick.jsonl"
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    for document in documents:
        document["q"] = " ".join([document["q"]] * 3)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return tiny_folder


def questions(setup, folder):
    """task → split → the questions it scores there, told apart by their first words."""
    found = {}
    for task in setup.tasks:
        lines = (folder / "tasks" / f"{task.task}.jsonl").read_text().splitlines()
        text = dict(zip(task.ids, (json.loads(line)["q"] for line in lines), strict=True))
        found[task.task] = {s: {text[i] for i in setup.items[s][task.task]} for s in SPLITS}
    return found


def test_a_document_under_two_names_is_searched_on_in_both_or_in_none(long_questions):
    rename(long_questions, share=30)
    setup = prepare(load_campaign(long_questions / "campaign.yaml", TWO_TASKS))
    found = questions(setup, long_questions)
    for split in SPLITS:
        for other in set(SPLITS) - {split}:
            assert not found["pick"][split] & found["again"][other]
    (note,) = setup.models.notes
    assert "'pick' and 'again' share 30 documents (for example 'w" in note
    assert "each is dealt to the same split in both" in note
    console = Console(width=200)
    with console.capture() as printed:
        console.print(preflight_table(setup, foresee(setup, long_questions, 12, None)))
    assert "share 30 documents" in printed.get()


def test_a_study_that_leaks_does_not_go_on_as_if_it_did_not(long_questions, monkeypatch):
    """Begun before documents were looked for, it holds test scores on what it searched."""
    rename(long_questions, share=30)
    overrides = [*TWO_TASKS, "budget.trials=1"]
    with monkeypatch.context() as patch:
        patch.setattr(
            "evomerge.campaign.setup.list_items",
            lambda config: [replace(t, marks=((),) * len(t.ids)) for t in list_items(config)],
        )
        out = run(long_questions, overrides=overrides)
    with pytest.raises(InputError, match="stand in another split now, for another task has them"):
        run(long_questions, out, [*TWO_TASKS, "budget.trials=2"])


@pytest.fixture
def public(tiny_folder, monkeypatch):
    """The campaign with its task on a data set of the hub."""
    path = tiny_folder / "tasks" / "pick.yaml"
    task = yaml.safe_load(path.read_text())
    del task["dataset_kwargs"]
    path.write_text(yaml.safe_dump({**task, "dataset_path": "someone/pick"}))
    found = datasets.load_dataset(
        "json",
        data_files={"test": str(tiny_folder / "tasks" / "pick.jsonl")},
        cache_dir=str(tiny_folder / "cache"),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
    return tiny_folder


def test_a_public_test_set_is_refused_before_any_work(public):
    result = CliRunner().invoke(app, ["check", str(public / "campaign.yaml")])
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "pick scores someone/pick, split test, a public test set" in message
    assert "set fitness.allow_test_sets: true" in message


def test_one_that_is_allowed_is_searched_on_and_told_of(public):
    allowed = ["fitness.allow_test_sets=true", "budget.trials=1"]
    assert "allow_test_sets" not in json.dumps(
        prepare(load_campaign(public / "campaign.yaml", allowed)).identity
    )
    best = Results(open_run(run(public, overrides=allowed))[1]).best()
    assert best["test_sets"] == ["pick"]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(best_table(best))
    text = " ".join(printed.get().split())
    assert "pick is a public test set, and the search has seen a part" in text
