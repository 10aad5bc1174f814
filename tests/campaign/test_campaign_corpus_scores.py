"""Perplexities and corpus metrics in a campaign: pruned, killed, resumed, and lm-eval's figures."""

from __future__ import annotations

import json
import random

import pytest
import tiny
import yaml
from executors import die_after, kill_at
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from running import facts, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.export.trial import export_trial
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.judging.corpus_values import is_corpus
from evomerge.report.pages.report import write_report
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

FITNESS = {
    "include_path": "tasks",
    "tasks": [
        {"task": "prose", "metric": "bits_per_byte", "measures": ["word_perplexity"]},
        {"task": "echo", "metric": "chrf", "measures": ["bleu"], "weight": 0.01},
        {"task": "pair", "metric": "mcc"},
        {"task": "pair", "metric": "acc", "weight": 0.5},
    ],
    "splits": {"search": 0.5, "select": 0.2, "test": 0.3},
    "rungs": [24, "all"],
    "race": {"keep": 0.25, "confidence": 0.5},
    "select_top": 2,
}


def save_tasks(folder, items=40):
    """A text to predict, one to translate, and two choices; their documents mean nothing."""
    draw = random.Random(0)
    files = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    tasks = {
        "prose": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "echo": {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{text}}",
            "generation_kwargs": {"until": ["w5"], "max_gen_toks": 6},
            "metric_list": [{"metric": "chrf"}, {"metric": "bleu"}],
        },
        "pair": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": ["w1", "w2"],
            "doc_to_target": "label",
            "metric_list": [{"metric": "mcc"}, {"metric": "acc"}],
        },
    }
    for name, task in tasks.items():
        lines = [
            {"text": " ".join(draw.choices(tiny.WORDS, k=draw.randint(3, 9))), "label": i % 2}
            for i in range(items)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        data = {"dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, **files, **data, **task})
        )


def save(folder, **fitness):
    save_tasks(folder / "tasks")
    tiny.save_campaign(folder, fitness={**FITNESS, **fitness})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save_campaign(folder)
    return run(save(folder))


@pytest.mark.slow
def test_the_scores_are_those_of_lm_eval_on_the_export_split_by_split(whole, tmp_path):
    config, study = open_run(whole)
    best = Results(study).best()
    export_trial(config, study, best["trial"], tmp_path / "out")
    tasks, items = config.fitness.lm_eval_tasks, study.items()
    manager = TaskManager(include_path=config.fitness.include_path, include_defaults=False)
    setup = prepare(config)
    order = {task.task: list(task.ids) for task in setup.tasks}
    for split in ("search", "select", "test"):
        places = {t.task: [order[t.task].index(i) for i in items[split][t.task]] for t in tasks}
        with quiet():
            found = simple_evaluate(
                model="hf",
                model_args=f"pretrained={tmp_path / 'out'},dtype=float32,softmax_dtype=float32",
                device="cpu",
                tasks=["prose", "echo", "pair"],
                task_manager=manager,
                samples=places,
                bootstrap_iters=0,
            )["results"]
        shown = best["scores"][split]["tasks"]
        for task in tasks:
            own = "pair.acc" if task.metric == "acc" else task.task
            names = {task.metric: own, **{m: f"{task.task}.{m}" for m in task.measures}}
            for metric, name in names.items():
                stock = found[task.task][f"{metric},none"]
                assert shown[name]["mean"] == pytest.approx(stock, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_documents_are_recorded_and_comparisons_permute_them(whole, tmp_path):
    study = open_run(whole)[1]
    measured = [e for e in study.evaluations() if e.measured]
    for e in measured:
        assert [task for task, values in e.scores.items() if not is_corpus(values)] == ["pair.acc"]
    pruned = [e for e in study.evaluations() if e.estimated]
    assert pruned
    best = Results(study).best()
    for split in ("search", "select", "test"):
        span = best["scores"][split]
        assert span["low"] < span["mean"] < span["high"]
        lead = best["parents"]["math"][split]["winner_minus_this"]
        assert lead["low"] <= lead["difference"] <= lead["high"]
    write_report(study, tmp_path / "report.html")
    assert "prose.word_perplexity" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [3, 12])
def test_killed_and_resumed_it_is_the_uninterrupted_run(whole, tmp_path, monkeypatch, killed_at):
    die_after(killed_at, whole.parent, tmp_path / "run", monkeypatch)
    assert facts(run(whole.parent, tmp_path / "run")) == facts(whole)
    ours, theirs = (Results(open_run(out)[1]).best() for out in (tmp_path / "run", whole))
    assert ours == theirs


@pytest.mark.slow
def test_a_driver_killed_by_the_system_goes_on_as_if_nothing_had_happened(whole, tmp_path):
    out = tmp_path / "run"
    kill_at([5, 11], whole.parent, out)
    assert facts(out) == facts(whole)


def test_an_aggregation_of_the_tasks_own_has_no_rungs(tiny_folder):
    save(tiny_folder)
    path = tiny_folder / "tasks" / "pair.yaml"
    path.write_text(path.read_text().replace("metric: acc", "{metric: acc, aggregation: median}"))
    with pytest.raises(InputError, match=r"fitness.rungs: pair.acc is aggregated by a function"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))
    setup = prepare(load_campaign(tiny_folder / "campaign.yaml", ["fitness.rungs=[all]"]))
    assert any("pair.acc: aggregated by a function" in note for note in setup.models.notes)


def test_no_document_is_worse_in_a_corpus_score(tiny_folder):
    bound = {"negative_flips": {"against": "base", "at_most": 0.1}}
    save(tiny_folder, constraints=[bound], tasks=FITNESS["tasks"][:3])
    with pytest.raises(
        InputError, match=r"negative_flips: prose, echo, pair is scored over the who"
    ):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))
