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


@pytest.mark.parametrize("include", ["tasks", ".", None])
@pytest.mark.parametrize("named", ["tasks/deep/file.yml", "./tasks/deep/../deep/file.yml", "/"])
def test_a_task_may_be_named_by_its_file(tmp_path, named, include):
    named = str(tmp_path / "tasks/deep/file.yml") if named == "/" else named
    config = load_campaign(with_task_file(tmp_path, named, include))
    assert config.fitness.tasks[0].task == "own"
    folder = "tasks/deep" if include is None else include
    assert config.fitness.include_path == str((tmp_path / folder).resolve())


def test_a_tasks_file_may_be_named_from_the_folder_of_tasks(tmp_path):
    config = load_campaign(with_task_file(tmp_path, "deep/file.yml"))
    assert config.fitness.tasks[0].task == "own"


def test_the_name_may_stand_in_a_file_that_is_included(tmp_path):
    path = with_task_file(tmp_path, "tasks/top.yaml")
    (tmp_path / "tasks/top.yaml").write_text("include: [top.yaml, ../other/mid.yml]\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mid.yml").write_text("include: ../tasks/deep/file.yml\n")
    assert load_campaign(path).fitness.tasks[0].task == "own"


def test_a_group_and_a_task_of_the_audit_may_be_named_by_their_files(tmp_path):
    path = with_task_file(tmp_path, "tasks/all.yaml")
    (tmp_path / "tasks/all.yaml").write_text("task:\n- own\n- other\ngroup: all_of_them\n")
    sections = yaml.safe_load(path.read_text())
    sections["fitness"]["audit"] = {"tasks": [{"task": "tasks/deep/file.yml"}]}
    path.write_text(yaml.safe_dump(sections))
    config = load_campaign(path)
    assert config.fitness.tasks[0].task == "all_of_them"
    assert config.fitness.audit.tasks[0].task == "own"


@pytest.mark.parametrize(
    ("named", "include", "message"),
    [
        (
            "tasks/deep/file.yml",
            "tasks/none",
            r"outside of .*/none\).* set fitness.include_path to .*tasks/deep or .*task: own",
        ),
        ("tasks/other.yaml", "tasks", "tasks/other.yaml: no such file in"),
        ("tasks/empty.yaml", "tasks", "names no task; write task: NAME into it"),
        ("tasks/torn.yaml", "tasks", "torn.yaml cannot be read: while parsing"),
        ("tasks/list.yaml", "tasks", "names no task"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_refused_with_the_way_out(
    tmp_path, named, include, message
):
    path = with_task_file(tmp_path, named, include)
    (tmp_path / "tasks" / "torn.yaml").write_text("task: [")
    (tmp_path / "tasks" / "list.yaml").write_text("- task: own")
    with pytest.raises(InputError, match=message):
        load_campaign(path)


def test_of_the_base_with_an_adapter_the_adapter_is_the_expert(tmp_path):
    path = tmp_path / "campaign.yaml"

    def experts(base, **specs):
        path.write_text(yaml.safe_dump(data(models={"base": base, "experts": specs})))
        return load_campaign(path).models.experts

    (tmp_path / "m").mkdir()
    found = experts("m", a="./m+ads/one", b=f"{tmp_path}/m+org/two@v1", c="other")
    assert found == {"a": "ads/one", "b": "org/two@v1", "c": str(tmp_path / "other")}
    assert experts("org/base", a="org/base+org/lora") == {"a": "org/lora"}
    (tmp_path / "m+x").mkdir()
    assert experts("m", a="m+x") == {"a": str(tmp_path / "m+x")}
    for base, spec, message in (
        (
            "org/base",
            "org/other+org/lora",
            r"models\.experts\.a: .*an adapter on org/other; .*merge",
        ),
        ("org/base+org/lora", "x", r"models\.base: .*an adapter is no base; merge it"),
    ):
        with pytest.raises(InputError, match=message):
            experts(base, a=spec)
