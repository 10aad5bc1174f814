"""Relative paths of a campaign file are taken from the folder that it lies in."""

import pytest
import yaml
from campaign_data import data

from evomerge.common.errors import InputError
from evomerge.config import load_campaign, resolve_spec


def test_paths_become_absolute_and_hub_ids_and_names_stay(tmp_path):
    (tmp_path / "metrics.py").write_text("")
    own = {"callable": "metrics:polite", "documents": "docs.jsonl"}
    path = tmp_path / "campaign.yaml"
    sections = data(
        fitness={"include_path": "tasks", "tasks": [own, {"task": "pick"}]},
        initial=["uniform", "old.json", {"run": "runs/old"}, {"study": "sqlite:///old.db"}],
        study={"storage": "sqlite:///here.db"},
    )
    path.write_text(yaml.safe_dump(sections))
    config = load_campaign(path)
    assert config.models.base == "org/base"
    assert config.models.experts == {"math": str(tmp_path / "math")}
    assert config.fitness.include_path == str(tmp_path / "tasks")
    [mine, theirs] = config.fitness.tasks
    assert mine.callable == f"{tmp_path / 'metrics.py'}:polite"
    assert mine.documents == str(tmp_path / "docs.jsonl")
    assert theirs.task == "pick"
    uniform, old, run, study = config.initial
    assert (uniform, old) == ("uniform", str(tmp_path / "old.json"))
    assert run.run == str(tmp_path / "runs/old")
    assert study.study == f"sqlite:///{tmp_path / 'old.db'}"
    assert config.study.storage == f"sqlite:///{tmp_path / 'here.db'}"


def test_an_installed_metric_and_a_server_stay_as_they_are(tmp_path):
    own = {"callable": "package.metrics:polite", "documents": "/docs.jsonl"}
    path = tmp_path / "campaign.yaml"
    url = "postgresql://host/db"
    path.write_text(yaml.safe_dump(data(fitness={"tasks": [own]}, study={"storage": url})))
    config = load_campaign(path)
    assert config.fitness.tasks[0].callable == "package.metrics:polite"
    assert config.study.storage == url


def test_a_folder_that_exists_comes_before_a_hub_id_of_its_name(tmp_path):
    assert resolve_spec("org/model", tmp_path) == "org/model"
    (tmp_path / "org/model").mkdir(parents=True)
    assert resolve_spec("org/model", tmp_path) == str(tmp_path / "org/model")
    with pytest.raises(InputError, match="cannot be a model's path"):
        resolve_spec("~nobody-of-that-name/x/y", tmp_path)


TASK = "task: own\ndataset_path: json\nprocess_results: !function scoring.it\n"


def with_task_file(folder, named, include="tasks"):
    """A campaign that names a task by `named`; the file lies in `tasks`."""
    (folder / "tasks" / "deep").mkdir(parents=True)
    (folder / "tasks" / "deep" / "file.yml").write_text(TASK)
    (folder / "tasks" / "empty.yaml").write_text("dataset_path: json\n")
    path = folder / "campaign.yaml"
    fitness = {"tasks": [{"task": named}]} | ({"include_path": include} if include else {})
    path.write_text(yaml.safe_dump(data(fitness=fitness)))
    return path


@pytest.mark.parametrize("named", ["tasks/deep/file.yml", "deep/file.yml"])
def test_a_task_may_be_named_by_its_file(tmp_path, named):
    config = load_campaign(with_task_file(tmp_path, named))
    assert config.fitness.tasks[0].task == "own"


@pytest.mark.parametrize(
    ("named", "include", "message"),
    [
        (
            "tasks/deep/file.yml",
            None,
            "set fitness.include_path: tasks/deep and name the task, task: own",
        ),
        ("tasks/other.yaml", "tasks", "tasks/other.yaml: no such file in"),
        ("tasks/empty.yaml", "tasks", "names no task; write task: NAME into it"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_refused_with_the_way_out(
    tmp_path, named, include, message
):
    with pytest.raises(InputError, match=message):
        load_campaign(with_task_file(tmp_path, named, include))
