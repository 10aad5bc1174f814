"""Items, and their scores: those of `lm_eval.simple_evaluate` on the same model."""

from __future__ import annotations

import random

import lm_eval.utils
import numpy as np
import pytest
import torch
from fitness_reference import everything, scores, stock
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from evomerge.common.errors import CandidateError, InputError
from evomerge.fitness.inference.local_model import Local
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.task_set import TaskSet, list_items

SETTINGS = {
    "plain": {},
    "few-shot": {"num_fewshot": 3},
    "system instruction": {"system_instruction": "system w1", "num_fewshot": 1},
    "chat template": {
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "system_instruction": "w2",
        "num_fewshot": 2,
    },
    "chat turns": {"apply_chat_template": True, "num_fewshot": 2},  # lm_eval's own default
}
METRICS = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "print"}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", METRICS)
def test_scores_equal_lm_eval_item_by_item(kind, setting, lm, tasks, docs):
    tasks.write("t", kind, train=docs(9, seed=1))
    config = tasks.config({"task": "t", "metric": METRICS[kind], **SETTINGS[setting]})
    expected = stock(lm, config)
    assert scores(lm, config) == expected
    assert len(expected["t"]) == 24


@pytest.mark.parametrize("setting", SETTINGS)
def test_loglikelihoods_see_the_same_prompt_as_lm_eval(setting, lm, tasks, docs):
    tasks.write(
        "t",
        "loglikelihood",
        train=docs(9, seed=1),
        process_results="!function scoring.loglikelihood",
        metric_list=[{"metric": "ll", "aggregation": "mean", "higher_is_better": True}],
    )
    config = tasks.config({"task": "t", "metric": "ll", **SETTINGS[setting]})
    found, expected = scores(lm, config)["t"], stock(lm, config)["t"]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.values())) > 20


@pytest.mark.parametrize(("in_file", "in_campaign"), [(0, 3), (2, None), (2, 1), (None, 1)])
def test_the_number_of_examples_is_settled_as_lm_eval_does(in_file, in_campaign, lm, tasks, docs):
    tasks.write("t", "generate_until", train=docs(9, seed=1), num_fewshot=in_file)
    config = tasks.config({"task": "t", "metric": "print", "num_fewshot": in_campaign})
    assert scores(lm, config) == stock(lm, config)


def test_settings_change_the_prompt(lm, tasks, docs):
    """Guards the test above: every setting must lead to other numbers."""
    tasks.write("t", "generate_until", train=docs(9, seed=1))
    found = [
        tuple(scores(lm, tasks.config({"task": "t", "metric": "print", **s}))["t"].values())
        for s in SETTINGS.values()
    ]
    assert len(set(found)) == len(SETTINGS)


def test_scoring_again_gives_the_same_and_follows_the_weights(lm, tasks, llama):
    tasks.write("t")
    config = tasks.config({"task": "t", "metric": "acc_norm"})
    task_set = TaskSet(config, Local(lm))
    first = task_set.score(everything(task_set))["t"]
    assert (task_set.score(everything(task_set))["t"] == first).all()
    with torch.no_grad():
        for mine, other in zip(lm.model.parameters(), llama(seed=5).parameters(), strict=True):
            mine.copy_(other)
    second = task_set.score(everything(task_set))["t"]
    assert second.tolist() == list(stock(lm, config)["t"].values())
    assert (first != second).any()


def test_generation_arguments_override_the_task(lm, tasks):
    tasks.write("t", "generate_until")
    short = tasks.config({"task": "t", "metric": "print", "gen_kwargs": {"max_gen_toks": 2}})
    assert scores(lm, short) == stock(lm, short)
    assert scores(lm, short) != scores(lm, tasks.config({"task": "t", "metric": "print"}))


@pytest.mark.parametrize("repeats", [1, 2])
def test_sampled_generation_draws_what_lm_eval_draws(repeats, lm, tasks):
    tasks.write("t", "generate_until", repeats=repeats)
    sampled = {"do_sample": True, "temperature": 1.0}
    config = tasks.config({"task": "t", "metric": "print", "gen_kwargs": sampled})
    torch.manual_seed(99)
    found = scores(lm, config)
    assert found == stock(lm, config)
    assert found != scores(lm, tasks.config({"task": "t", "metric": "print"}))


def test_a_named_filter_is_read(lm, tasks, docs):
    def regex(name, pattern):
        steps = [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]
        return {"name": name, "filter": steps}

    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    first_word, second_word = r"^(\w+)", r"^\w+ (\w+)"
    keys = {
        "process_results": None,
        "metric_list": exact,
        "filter_list": [regex("one", first_word), regex("two", second_word)],
    }
    # A few answers are right by construction: they are what the model says.
    tasks.write("draft", "generate_until", **keys)
    draft = tasks.config({"task": "draft", "metric": "exact_match,two"})
    with quiet():
        said = simple_evaluate(
            model=lm,
            tasks=["draft"],
            task_manager=TaskManager(include_path=draft.include_path, include_defaults=False),
            bootstrap_iters=0,
        )["samples"]["draft"]
    spoken = {s["doc_id"]: s["filtered_resps"][0] for s in said if s["filter"] == "two"}
    answered = [{**doc, "word": spoken[i]} if i % 2 else doc for i, doc in enumerate(docs(24))]
    tasks.write("t", "generate_until", test=answered, **keys)
    config = tasks.config({"task": "t", "metric": "exact_match,two"})
    found = scores(lm, config)
    assert found == stock(lm, config, "two")
    assert 12 <= sum(found["t"].values()) < 24
    one = tasks.config({"task": "t", "metric": "exact_match,one"})
    assert scores(lm, one) == stock(lm, one, "one") != found


def test_a_subset_scores_as_in_the_whole(lm, tasks):
    tasks.write("a", process_results=None)
    tasks.write("b", "generate_until")
    config = tasks.config({"task": "a", "metric": "acc_norm"}, {"task": "b", "metric": "print"})
    task_set = TaskSet(config, Local(lm))
    ids = everything(task_set)
    whole = task_set.score(ids)
    order = [17, 3, 20, 3, 0]
    part = task_set.score({"b": [ids["b"][i] for i in order], "a": [ids["a"][5]]})
    assert part["b"].tolist() == whole["b"][order].tolist()
    assert part["a"].tolist() == whole["a"][[5]].tolist()
    assert part["a"].dtype == np.float64
    assert task_set.score({"a": []})["a"].shape == (0,)


def test_repeated_documents_are_numbered_and_scored(lm, tasks, docs):
    once = docs(4)
    tasks.write("t", test=[*once, once[1], once[1]])
    config = tasks.config({"task": "t"})
    (items,) = TaskSet(config, Local(lm)).items
    assert items.ids[4:] == (items.ids[1] + "#2", items.ids[1] + "#3")
    found = scores(lm, config)["t"]
    assert found[items.ids[4]] == found[items.ids[5]] == found[items.ids[1]]


def test_an_item_or_task_that_is_not_there_is_named(lm, tasks):
    tasks.write("t")
    task_set = TaskSet(tasks.config({"task": "t"}), Local(lm))
    with pytest.raises(InputError, match="t: no item 'abc'"):
        task_set.score({"t": ["abc"]})
    with pytest.raises(InputError, match="no task 'u' here; tasks: t"):
        task_set.score({"u": []})


def test_non_finite_weights_fail_the_candidate(lm, tasks):
    tasks.write("t")
    task_set = TaskSet(tasks.config({"task": "t"}), Local(lm))
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CandidateError, match="non-finite logits"):
        task_set.score(everything(task_set))


def test_task_code_that_fails_fails_the_candidate(lm, tasks):
    tasks.write("t", "generate_until", process_results="!function scoring.loglikelihood")
    (tasks.folder / "scoring.py").write_text("def loglikelihood(doc, results):\n    1 / 0\n")
    task_set = TaskSet(tasks.config({"task": "t", "metric": "print"}), Local(lm))
    with pytest.raises(CandidateError, match=r"process_results failed on item .*ZeroDivision"):
        task_set.score(everything(task_set))


def test_task_code_may_change_the_document_it_is_given(lm, tasks):
    tasks.write(
        "t",
        "loglikelihood",
        process_results="!function scoring.loglikelihood",
        metric_list=[{"metric": "ll", "aggregation": "mean", "higher_is_better": True}],
    )
    task_set = TaskSet(tasks.config({"task": "t", "metric": "ll"}), Local(lm))
    first = task_set.score(everything(task_set))["t"]
    assert (task_set.score(everything(task_set))["t"] == first).all()


def test_scoring_compiles_no_template_twice(lm, tasks, monkeypatch):
    tasks.write("t")
    task_set = TaskSet(tasks.config({"task": "t"}), Local(lm))
    first = task_set.score(everything(task_set))["t"]
    with monkeypatch.context() as patch:
        patch.setattr("jinja2.Environment.compile", pytest.fail)
        assert (task_set.score(everything(task_set))["t"] == first).all()
    assert "from_string" not in vars(lm_eval.utils.env)


def test_nothing_is_printed(lm, tasks, docs, capfd):
    tasks.write("t", "generate_until", train=docs(9, seed=1))
    scores(lm, tasks.config({"task": "t", "metric": "print", "num_fewshot": 2}))
    assert capfd.readouterr() == ("", "")


def test_random_generators_are_left_alone(lm, tasks, docs):
    tasks.write("t", "generate_until", train=docs(9, seed=1))
    config = tasks.config(
        {
            "task": "t",
            "metric": "print",
            "num_fewshot": 2,
            "gen_kwargs": {"do_sample": True, "temperature": 1.0},
        }
    )
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    scores(lm, config)
    list_items(config)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states


def test_items_are_known_without_a_model(lm, tasks, docs):
    tasks.write("a", train=docs(5, seed=1))
    tasks.write("b", "generate_until", fewshot_config={"sampler": "first_n"})
    config = tasks.config(
        {"task": "a", "num_fewshot": 2, "apply_chat_template": True, "weight": 3},
        {"task": "b", "metric": "print", "num_fewshot": 4},
    )
    items = list_items(config)
    assert items == TaskSet(config, Local(lm)).items
    assert [(i.task, i.metric, i.higher_is_better, i.weight) for i in items] == [
        ("a", "acc", True, 3),
        ("b", "print", False, 1),
    ]


def test_ids_are_lm_evals_document_hashes(lm, tasks):
    tasks.write("t")
    config = tasks.config({"task": "t"})
    (items,) = list_items(config)
    assert list(items.ids) == list(stock(lm, config)["t"])


def test_a_task_in_two_entries_is_refused(tasks):
    tasks.write("t")
    tasks.write_file("g", {"group": "g", "task": ["t"]})
    with pytest.raises(InputError, match=r"tasks\[1\].task: 'g' and 't' both hold 't'"):
        list_items(tasks.config({"task": "t"}, {"task": "g"}))


def test_every_item_has_an_id_of_its_own(lm, tasks, docs):
    tasks.write("t", test=[*docs(5), *docs(5)])
    ids = everything(TaskSet(tasks.config({"task": "t"}), Local(lm)))["t"]
    assert len(set(ids)) == 10


def test_entries_of_one_task_share_its_answers(lm, tasks):
    tasks.write("t")
    both = tasks.config({"task": "t"}, {"task": "t", "metric": "acc_norm", "weight": 2.0})
    scored = TaskSet(both, Local(lm))
    assert [(i.task, i.metric, i.weight) for i in scored.items] == [
        ("t", "acc", 1.0),
        ("t.acc_norm", "acc_norm", 2.0),
    ]
    wanted = {items.task: items.ids for items in scored.items}
    assert len(scored.requests(wanted)) == 4 * 24
    found = scored.score(wanted)
    for items in scored.items:
        alone = scores(lm, tasks.config({"task": "t", "metric": items.metric}))["t"]
        assert found[items.task].tolist() == list(alone.values())
    assert found["t"].tolist() != found["t.acc_norm"].tolist()


CODE = '''
import os
import subprocess
import sys


def passes(references, predictions, k):
    """Run what the model wrote; all numbers at once, as humaneval's metric does."""
    (attempts,), (test,) = predictions, references
    code = [f"{one}\\n{test}" for one in attempts]
    done = [subprocess.run([sys.executable, "-c", one]).returncode for one in code]
    return {f"pass@{n}": float(0 in done[:n]) for n in k}


def build(resps, docs):
    asked = os.environ["HF_ALLOW_CODE_EVAL"] == "1"
    return [[f"answer = {len(one.split()) * asked}" for one in each] for each in resps]
'''


def test_code_tasks_run_where_that_is_allowed_as_in_lm_eval(lm, tasks, docs, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    (tasks.folder / "coding.py").write_text(CODE)
    tasks.write(
        "t",
        "generate_until",
        test=docs(6),
        unsafe_code=True,
        process_results=None,
        doc_to_target="assert answer % 2",
        filter_list=[
            {
                "name": "create_test",
                "filter": [{"function": "custom", "filter_fn": "!function coding.build"}],
            }
        ],
        metric_list=[
            {
                "metric": "!function coding.passes",
                "aggregation": "mean",
                "higher_is_better": True,
                "k": [1, 2],
            }
        ],
    )
    entry = {"task": "t", "metric": "pass@1"}
    with pytest.raises(InputError, match=r"tasks\[0\].task: 't': t runs code that the model wri"):
        list_items(tasks.config(entry))
    config = tasks.config(entry, run_unsafe_code=True)
    (items,) = list_items(config)
    assert (items.metric, items.higher_is_better, items.runs_code) == ("pass@1", True, True)
    with pytest.raises(
        InputError, match=r"has no metric 'pass'; it has: pass@1,create_test, pass@"
    ):
        list_items(tasks.config({**entry, "metric": "pass"}, run_unsafe_code=True))
    found = scores(lm, config)["t"]
    with quiet():
        expected = simple_evaluate(
            model=lm,
            tasks=["t"],
            task_manager=TaskManager(include_path=config.include_path, include_defaults=False),
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )["results"]["t"]
    assert np.mean(list(found.values())) == expected["pass@1,create_test"]
    assert 0 < expected["pass@1,create_test"] < 1
