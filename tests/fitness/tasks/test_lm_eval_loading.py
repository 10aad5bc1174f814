"""Where lm-eval's tasks and their data are found, and which are refused."""

from __future__ import annotations

import pytest

from evomerge.common.errors import InputError
from evomerge.fitness.tasks.task_set import list_items


def refused(config):
    with pytest.raises(InputError) as caught:
        list_items(config)
    return str(caught.value)


def test_relative_data_files_start_at_the_task_file(lm, tasks, docs, tmp_path, monkeypatch):
    tasks.write("t")
    expected = list_items(tasks.config({"task": "t"}))[0].ids
    (tasks.folder / "templates").mkdir()
    (tasks.folder / "data").mkdir()
    (tasks.folder / "t_test.jsonl").rename(tasks.folder / "data" / "t_test.jsonl")
    text = (tasks.folder / "t.yaml").read_text().replace(str(tasks.folder / "t_"), "../data/t_")
    (tasks.folder / "templates" / "base").write_text(text)
    tasks.write_file("t", {"include": "templates/base", "task": "t"})
    monkeypatch.chdir(tmp_path)
    config = tasks.config({"task": "t"})
    assert list_items(config)[0].ids == expected
    tasks.write_file(
        "t",
        {
            "include": "templates/base",
            "task": "t",
            "dataset_kwargs": {"data_dir": "data", "data_files": {"test": "t_test.jsonl"}},
        },
    )
    assert list_items(config)[0].ids == expected


def test_relative_data_of_a_task_defined_in_a_group_start_at_the_group_file(tasks):
    tasks.write("t")
    config = {
        "task": "inner",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": ["t_test.jsonl"]}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "question",
        "doc_to_target": "word",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    tasks.write_file("g", {"group": "g", "task": [config]})
    (items,) = list_items(tasks.config({"task": "g"}))
    assert (items.task, len(items.ids)) == ("g::inner", 24)


def test_an_unknown_task_is_named_with_the_nearest(tasks, monkeypatch):
    monkeypatch.setattr("evomerge.fitness.tasks.lm_eval_loading._built_in_index", dict)
    tasks.write("addition")
    (tasks.folder / "torn.yaml").write_text("task: [")
    message = refused(tasks.config({"task": "addition"}, {"task": "adition"}))
    assert message.startswith("fitness.tasks[1].task: no task 'adition' in ")
    assert "did you mean addition?" in message
    assert "torn.yaml cannot be read" in message


def test_built_in_tasks_are_found_without_the_full_scan(tasks, monkeypatch):
    monkeypatch.setattr("evomerge.fitness.tasks.lm_eval_loading._built_in_index", pytest.fail)
    message = refused(tasks.config({"task": "arc_easy"}, allow_test_sets=True))
    assert "fitness.tasks[0].task: 'arc_easy': its data cannot be read" in message
    assert "offline" in message


def test_a_missing_data_file_is_one_message(tasks):
    tasks.write("t")
    (tasks.folder / "t_test.jsonl").unlink()
    message = refused(tasks.config({"task": "t"}))
    assert f"its data cannot be read: Unable to find '{tasks.folder}/t_test.jsonl'" in message
    assert "Correct data_files in the task's file" in message


def test_a_data_file_without_documents_is_said_to_be_empty(tasks):
    tasks.write("t", test=[])
    assert "a file of its data is empty" in refused(tasks.config({"task": "t"}))


def test_a_task_whose_own_file_cannot_be_read_is_looked_for_nowhere_else(tasks, monkeypatch):
    monkeypatch.setattr("evomerge.fitness.tasks.lm_eval_loading._built_in_index", pytest.fail)
    (tasks.folder / "own.yaml").write_text("task: own\n\tdataset_path: json\n")
    message = refused(tasks.config({"task": "own"}))
    assert message.startswith(f"fitness.tasks[0].task: 'own': {tasks.folder}/own.yaml cannot be re")


def test_a_damaged_data_file_is_one_message_with_the_reason(tasks):
    tasks.write("t")
    (tasks.folder / "t_test.jsonl").write_text('{"question": "w1"')
    message = refused(tasks.config({"task": "t"}))
    where = f"fitness.tasks[0].task: 't' ({tasks.folder}/t.yaml)"
    assert f"{where} cannot be loaded: DatasetGenerationError" in message
    assert "JSON parse error" in message


def test_a_split_that_the_data_lacks_is_named_with_those_there_are(tasks, docs):
    tasks.write("t", train=docs(5), test_split="test2")
    assert refused(tasks.config({"task": "t"})) == (
        f"fitness.tasks[0].task: 't' ({tasks.folder}/t.yaml) cannot be loaded: test_split is "
        "'test2', but the data has 'test', 'train' only; name one that is there, or give the "
        "file as data_files: {test2: …}"
    )


def test_a_task_file_that_ends_in_yml_is_read(tasks):
    tasks.write("t")
    (expected,) = list_items(tasks.config({"task": "t"}))
    (tasks.folder / "t.yaml").rename(tasks.folder / "t.yml")
    assert list_items(tasks.config({"task": "t"})) == (expected,)
    (tasks.folder / "t.yml").write_text("task: [")
    assert "t.yml cannot be read" in refused(tasks.config({"task": "t"}))


def test_a_missing_include_path_is_named(tasks, tmp_path):
    config = tasks.config({"task": "t"}, include_path=str(tmp_path / "nowhere"))
    assert refused(config).startswith("fitness.include_path: ")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unsafe_code": True}, "Set fitness.run_unsafe_code: true if you mean it"),
        ({"doc_to_text": "{{missing.field}}"}, "cannot be loaded: UndefinedError"),
        ({"num_fewshot": 99}, "tasks[0].num_fewshot: 99 examples are asked for, and 't' has few"),
        ({"doc_to_text": "{{question"}, "its doc_to_text is not a template: unexpected end of"),
        ({"doc_to_choice": "{{choices | pick}}"}, "its doc_to_choice is not a template: No filter"),
        ({"doc_to_target": 7}, "the answer of its first document, 7, is none of its 4 choices"),
        ({"doc_to_choice": ["", "a", "b", "c"]}, "an empty choice in its first document: ['', 'a"),
        (
            {"metric_list": [{"metric": "acc", "aggregation": "meen"}]},
            "lm-eval has no aggregation 'meen' (metric_list in the task's file); did you mean 'm",
        ),
    ],
)
def test_tasks_that_cannot_be_scored_are_refused(keys, message, tasks):
    tasks.write("t", **keys)
    metric = "word_perplexity" if "kind" in keys else "acc"
    assert message in refused(tasks.config({"task": "t", "metric": metric}))
