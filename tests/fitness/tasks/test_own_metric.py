"""Metrics of one's own: functions over documents, as tasks beside lm-eval's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fitness_reference import everything
from pydantic import ValidationError

from evomerge.common.errors import CandidateError, InputError
from evomerge.fitness.inference.local_model import Local
from evomerge.fitness.tasks.documents import document_hash
from evomerge.fitness.tasks.task_set import TaskSet, list_items

METRICS = '''
import torch
import wordlists

CALLS = []


def nearness(model, tokenizer, items):
    """How likely the model thinks the answer is; the items' own words decide."""
    CALLS.append([item["text"] for item in items])
    scores = []
    for item in items:
        tokens = torch.tensor([tokenizer.encode(item["text"])])
        logits = model(tokens).logits[0, -1]
        assert not logits.requires_grad
        answer = tokenizer.encode(item["answer"], add_special_tokens=False)[0]
        scores.append(float(logits.log_softmax(-1)[answer]) + wordlists.BONUS)
        item.clear()
    return scores


def few(model, tokenizer, items):
    return [1.0]


def text(model, tokenizer, items):
    return ["good"] * len(items)


def infinite(model, tokenizer, items):
    return [0.0] * (len(items) - 1) + [float("inf")]


def failing(model, tokenizer, items):
    return [1 / 0]


def starved(model, tokenizer, items):
    raise MemoryError


def tensor(model, tokenizer, items):
    return torch.arange(len(items))


def two(model, tokenizer):
    return []


value = 3
'''


@pytest.fixture
def own(tasks):
    """A folder with `metrics.py` and `documents.jsonl`."""
    (tasks.folder / "metrics.py").write_text(METRICS)
    (tasks.folder / "wordlists.py").write_text("BONUS = 0.5\n")
    lines = [{"text": f"w{i} w{i + 1}", "answer": f"w{(7 * i) % 40}"} for i in range(12)]
    write(tasks, lines)
    return tasks


def write(tasks, lines):
    text = "".join(json.dumps(line) + "\n\n" for line in lines)
    (tasks.folder / "documents.jsonl").write_text(text)


def entry(tasks, function="nearness", module="metrics.py", **keys):
    return {
        "callable": f"{tasks.folder / module}:{function}",
        "documents": str(tasks.folder / "documents.jsonl"),
        **keys,
    }


def by_hand(lm, number):
    tokens = torch.tensor([lm.tokenizer.encode(f"w{number} w{number + 1}")])
    with torch.no_grad():
        logits = lm.model(tokens).logits[0, -1].log_softmax(-1)
    answer = lm.tokenizer.encode(f"w{(7 * number) % 40}", add_special_tokens=False)[0]
    return float(logits[answer]) + 0.5


def test_a_function_scores_its_documents_with_the_model(lm, own):
    task_set = TaskSet(own.config(entry(own)), Local(lm))
    (items,) = task_set.items
    assert (items.task, items.kind, items.metric) == ("nearness", "callable", "nearness")
    assert (items.higher_is_better, items.weight, items.excluded) == (True, 1.0, frozenset())
    found = task_set.score(everything(task_set))["nearness"]
    assert found.tolist() == pytest.approx([by_hand(lm, i) for i in range(12)], abs=1e-5)
    assert len(set(found.tolist())) == 12


def test_it_follows_the_weights_and_may_change_the_items_it_is_given(lm, own, llama):
    task_set = TaskSet(own.config(entry(own)), Local(lm))
    first = task_set.score(everything(task_set))["nearness"]
    assert (task_set.score(everything(task_set))["nearness"] == first).all()
    lm.model.load_state_dict(llama(seed=5).state_dict())
    assert (task_set.score(everything(task_set))["nearness"] != first).all()


def test_only_what_is_asked_is_scored(lm, own):
    task_set = TaskSet(own.config(entry(own)), Local(lm))
    ids = everything(task_set)["nearness"]
    whole = task_set.score({"nearness": ids})["nearness"]
    part = task_set.score({"nearness": [ids[5], ids[2], ids[5]]})["nearness"]
    assert part.tolist() == whole[[5, 2, 5]].tolist()
    function = task_set._sources["nearness"].function
    assert function.__globals__["CALLS"][-1] == ["w2 w3", "w5 w6"]


def test_ids_are_those_of_the_content_wherever_it_stands(own):
    lines = [json.loads(line) for line in (own.folder / "documents.jsonl").open() if line.strip()]
    (items,) = list_items(own.config(entry(own)))
    assert items.ids == tuple(document_hash(line) for line in lines)
    write(own, [*reversed(lines), lines[0]])
    (again,) = list_items(own.config(entry(own)))
    assert again.ids == (*reversed(items.ids), f"{items.ids[0]}#2")


def test_it_stands_beside_lm_evals_tasks_in_their_order(lm, own):
    own.write("a")
    own.write("b", "generate_until")
    config = own.config(
        {"task": "a"},
        entry(own, task="mine", weight=2, higher_is_better=False),
        {"task": "b", "metric": "print"},
    )
    items = list_items(config)
    assert [(i.task, i.weight) for i in items] == [("a", 1.0), ("mine", 2.0), ("b", 1.0)]
    assert not items[1].higher_is_better
    task_set = TaskSet(config, Local(lm))
    assert task_set.items == items
    found = task_set.score(everything(task_set))
    assert {name: len(values) for name, values in found.items()} == {"a": 24, "mine": 12, "b": 24}


def test_a_tensor_is_as_good_as_a_list(lm, own):
    task_set = TaskSet(own.config(entry(own, "tensor")), Local(lm))
    found = task_set.score(everything(task_set))["tensor"]
    assert found.dtype == np.float64
    assert found.tolist() == list(range(12))


def test_code_and_documents_are_part_of_what_is_asked(own):
    (before,) = list_items(own.config(entry(own)))
    (same,) = list_items(own.config(entry(own)))
    assert same.asked == before.asked
    (own.folder / "metrics.py").write_text(METRICS.replace("+ wordlists.BONUS", ""))
    (changed,) = list_items(own.config(entry(own)))
    assert changed.asked != before.asked
    (own.folder / "metrics.py").write_text(METRICS)
    write(own, [{"text": "w1", "answer": "w2"}] * 12)
    (other,) = list_items(own.config(entry(own)))
    assert other.asked != before.asked


def test_an_installed_module_will_do(own):
    config = own.config(
        {**entry(own), "callable": "evomerge.fitness.tasks.own_metric:load_own_metric"}
    )
    (items,) = list_items(config)
    assert items.metric == "load_own_metric"


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("few", InputError, r"few: few returned \[1.0\] for 12 items; it must return one number"),
        ("text", InputError, "text: text returned"),
        ("infinite", CandidateError, "infinite: infinite is inf on "),
        ("failing", CandidateError, "failing: failing failed: ZeroDivisionError"),
        ("starved", MemoryError, None),
    ],
)
def test_what_it_returns_is_looked_at(function, error, said, lm, own):
    task_set = TaskSet(own.config(entry(own, function)), Local(lm))
    with pytest.raises(error, match=said):
        task_set.score(everything(task_set))


@pytest.mark.parametrize(
    ("function", "module", "said"),
    [
        ("nearness", "missing.py", "callable: .*missing.py cannot be read"),
        ("absent", "metrics.py", "callable: .*metrics.py has no function 'absent'"),
        ("value", "metrics.py", "callable: .* has no function 'value'"),
        ("two", "metrics.py", r"callable: two must take \(model, tokenizer, items\)"),
        ("x", "broken.py", r"callable: .*broken.py cannot be imported: SyntaxError"),
        ("x", "needy.py", "callable: .*needy.py cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_not_there_is_named_before_any_work(function, module, said, own):
    (own.folder / "broken.py").write_text("def x(:\n")
    (own.folder / "needy.py").write_text("import not_there\n")
    with pytest.raises(InputError, match=rf"fitness.tasks\[0\].{said}"):
        list_items(own.config(entry(own, function, module)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "documents.jsonl cannot be read"),
        ("", "has no documents"),
        ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ('{"a": 1}\n[1]\n', "line 2: write one JSON object a line"),
    ],
)
def test_documents_that_will_not_do_are_named_before_any_work(text, said, own):
    path = own.folder / "documents.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=rf"fitness.tasks\[0\].documents: .*{said}"):
        list_items(own.config(entry(own)))


def test_a_name_that_a_task_has_is_refused(own):
    own.write("a")
    with pytest.raises(ValidationError, match="a listed twice"):
        own.config({"task": "a"}, entry(own, task="a"))
    own.write_file("g", {"group": "g", "task": ["a"]})
    with pytest.raises(InputError, match=r"fitness.tasks\[1\].task: 'a' and 'g' both hold 'a'"):
        list_items(own.config({"task": "g"}, entry(own, task="a")))
