"""lm-eval's own humaneval and mbpp, on documents of our own in their form, through a campaign."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from pathlib import Path

import evaluate
import pytest
import tiny
import yaml
from executors import die_after, kill_at
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from running import facts, run
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import parse_campaign
from evomerge.export.trial import export_trial
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.task_set import list_items
from evomerge.fitness.tasks.test_sets import BUILT_IN
from evomerge.results import Results
from evomerge.study.run_folder import open_run

METRIC = Path(__file__).parents[1] / "helpers" / "code_eval"
STATEMENTS = [f"x={i};" for i in range(60)]
"""The models' words: whatever is written in them is a program."""
FITNESS = {
    "include_path": "tasks",
    "tasks": [
        {"task": "humaneval", "metric": "pass@1", "gen_kwargs": {"max_gen_toks": 6}},
        {"task": "mbpp", "metric": "pass_at_1", "gen_kwargs": {"max_gen_toks": 6}},
    ],
    "splits": {"search": 0.5, "select": 0.25, "test": 0.25},
    "rungs": [6, "all"],
    "race": {"keep": 0.25, "confidence": 0.5},
    "select_top": 2,
    "run_unsafe_code": True,
}


def save_tokenizer(folder):
    vocabulary = {word: i for i, word in enumerate([*tiny.SPECIAL, *STATEMENTS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)


def save_tasks(folder, items=12):
    """The two tasks as lm-eval has them, with our documents in the place of the hub's."""
    draw = random.Random(0)
    folder.mkdir()
    documents = {"humaneval": [], "mbpp": []}
    for i in range(items):
        said, least = " ".join(draw.choices(STATEMENTS, k=5)), draw.randint(10, 50)
        check = f"def check(x):\n    assert x >= {least}\n"
        documents["humaneval"].append(
            {
                "task_id": f"Own/{i}",
                "prompt": f"{said} ",
                "canonical_solution": "x=59;",
                "test": check,
                "entry_point": "x",
            }
        )
        tests = ["assert x >= 0", f"assert x >= {least}", "assert x < 60"]
        documents["mbpp"].append({"task_id": i, "text": said, "code": "x=59;", "test_list": tests})
    for name, found in documents.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in found))
        task = {
            "include": str(BUILT_IN / name / f"{name}.yaml"),
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(file)}},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def save(folder):
    paths = tiny.save_family(folder / "models", max_position_embeddings=1024)
    for path in paths.values():
        save_tokenizer(path)
    save_tasks(folder / "tasks")
    tiny.save_campaign(folder, fitness=FITNESS, budget={"trials": 6})
    shutil.copytree(METRIC, folder / "code_eval")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _metrics_kept_here(tmp_path_factory):
    """`evaluate` keeps the scripts of metrics in its cache, and looks for them there."""
    cache = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(cache))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", cache)
        patch.syspath_prepend(cache)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _metrics_kept_here):
    """An uninterrupted run."""
    folder = save(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(folder)


@pytest.mark.slow
def test_the_scores_are_those_of_lm_eval_on_the_export_split_by_split(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole.parent)
    config, study = open_run(whole)
    best = Results(study).best()
    export_trial(config, study, best["trial"], tmp_path / "out", anyway=True)
    manager = TaskManager(include_path=config.fitness.include_path, include_defaults=False)
    order = {task.task: list(task.ids) for task in prepare(config).tasks}
    found = {}
    for split, items in study.items().items():
        places = {task: [order[task].index(i) for i in ids] for task, ids in items.items()}
        with quiet():
            found[split] = simple_evaluate(
                model="hf",
                model_args=f"pretrained={tmp_path / 'out'},dtype=float32,softmax_dtype=float32",
                device="cpu",
                tasks=["humaneval", "mbpp"],
                gen_kwargs={"max_gen_toks": 6},
                task_manager=manager,
                samples=places,
                bootstrap_iters=0,
                confirm_run_unsafe_code=True,
            )["results"]
        shown = best["scores"][split]["tasks"]
        assert shown["humaneval"]["mean"] == found[split]["humaneval"]["pass@1,create_test"]
        assert shown["mbpp"]["mean"] == found[split]["mbpp"]["pass_at_1,none"]
    scores = {e.value for e in study.evaluations() if e.split == "search"}
    assert len(scores) > 2, "the programs of all merges do equally well: nothing is compared"


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_uninterrupted_run(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole.parent)
    die_after(7, whole.parent, tmp_path / "run", monkeypatch)
    assert facts(run(whole.parent, tmp_path / "run")) == facts(whole)


@pytest.mark.slow
def test_in_a_process_of_its_own_killed_by_the_system_it_is_the_same_run(whole, tmp_path):
    out = tmp_path / "run"
    kill_at([4], whole.parent, out, "--set", "workers.isolated=true")
    assert facts(out) == facts(whole)


def test_a_metric_that_is_not_here_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    save_tasks(tmp_path / "tasks", items=2)
    fitness = parse_campaign(tiny.campaign_data(fitness=FITNESS), "campaign").fitness
    fitness = fitness.model_copy(update={"include_path": str(tmp_path / "tasks")})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "no metrics")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    for name in [name for name in sys.modules if re.search(r"\.(humaneval|mbpp)\.utils$", name)]:
        monkeypatch.delitem(sys.modules, name)  # lm-eval keeps what an earlier test has loaded
    with pytest.raises(InputError, match="needs the metric 'code_eval' of the package") as error:
        list_items(fitness)
    assert "fitness.tasks[0].task: 'humaneval'" in str(error.value)
    assert "evaluate.load('code_eval')" in str(error.value)
