"""Which documents are a public test set."""

from __future__ import annotations

import datasets
import pytest

from evomerge.common.errors import InputError
from evomerge.fitness.tasks.task_set import list_items


@pytest.fixture
def hub(monkeypatch):
    """A data set of the hub with splits of arithmetic, whatever its name."""
    rows = [{"question": f"{n} + {n}", "answer": f"#### {2 * n}"} for n in range(12)]
    found = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows) for split in ("train", "validation", "test")}
    )
    load = datasets.load_dataset

    def load_dataset(path, **kwargs):
        here = path == "json" and "://" not in str(kwargs)
        return load(path, **kwargs) if here else found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def own(tasks, name, **keys):
    """A task file of one's own on a data set of the hub."""
    tasks.write(name, "generate_until", dataset_path="someone/sums", dataset_kwargs={}, **keys)
    return {"task": name, "metric": "print"}


GSM8K = {"task": "gsm8k", "metric": "exact_match,strict-match", "num_fewshot": 0}


def allowed(tasks, *entries):
    """Task → the public test set it scores."""
    config = tasks.config(*entries, allow_test_sets=True)
    return {items.task: items.test_set for items in list_items(config)}


def test_what_a_task_of_lm_evals_own_scores_is_a_public_test_set(hub, tasks):
    assert allowed(tasks, GSM8K) == {"gsm8k": "openai/gsm8k, split test"}


def test_it_is_refused_before_its_data_is_fetched(tasks, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(InputError) as caught:
        list_items(tasks.config(GSM8K))
    message = str(caught.value)
    assert message.startswith(
        "fitness.tasks[0].task: 'gsm8k': gsm8k scores openai/gsm8k, split test, a public test set"
    )
    assert "set fitness.allow_test_sets: true" in message


def test_one_whose_answers_are_secret_is_scored_on_its_validation_split(tasks):
    with pytest.raises(InputError, match="scores Rowan/hellaswag, split validation, a public"):
        list_items(tasks.config({"task": "hellaswag"}))


def test_a_task_file_of_ones_own_is_held_to_the_split_that_it_scores(hub, tasks):
    entries = [
        own(tasks, "tested", doc_to_target="answer"),
        own(tasks, "trained", doc_to_target="answer", test_split="train"),
        own(tasks, "valid", doc_to_target="answer", test_split=None, validation_split="validation"),
    ]
    found = allowed(tasks, *entries)
    assert found == {"tested": "someone/sums, split test", "trained": None, "valid": None}
    with pytest.raises(InputError, match=r"tasks\[1\].task: 'tested': tested scores someone/sums"):
        list_items(tasks.config(entries[1], entries[0]))


def test_a_member_written_down_in_a_group_is_looked_at_too(hub, tasks):
    own(tasks, "t", doc_to_target="answer")
    text = (tasks.folder / "t.yaml").read_text()
    (tasks.folder / "t.yaml").unlink()
    lines = [f"{'  - ' if n == 0 else '    '}{line}" for n, line in enumerate(text.splitlines())]
    (tasks.folder / "g.yaml").write_text("\n".join(["group: g", "task:", *lines]))
    found = allowed(tasks, {"task": "g", "metric": "print"})
    assert found == {"g::t": "someone/sums, split test"}


def test_local_files_are_no_public_test_set_whatever_their_split_is_called(tasks):
    tasks.write("t")
    (items,) = list_items(tasks.config({"task": "t"}))
    assert items.test_set is None


def test_files_behind_an_address_are_public(hub, tasks):
    files = {"data_files": {"test": "https://example.org/test.jsonl"}}
    tasks.write("t", "generate_until", dataset_kwargs=files, doc_to_target="answer")
    found = allowed(tasks, {"task": "t", "metric": "print"})
    assert found == {"t": "files of the web, split test"}
