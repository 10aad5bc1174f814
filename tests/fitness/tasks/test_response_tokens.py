"""The length of an answer as a metric, alone or beside the task's own."""

from __future__ import annotations

import json

import pytest
from fitness_reference import everything, scores, stock
from pydantic import ValidationError

from evomerge.common.errors import InputError
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.response_tokens import response_end
from evomerge.fitness.tasks.task_set import TaskSet, list_items

UNTIL = {"until": ["w7", "w3 w3"], "max_gen_toks": 24, "do_sample": False}
"""Stops the random model's answers at many lengths; one string spans two words."""


def by_hand(lm, config):
    """Tokens of each item's answer, generated alone: a batch of one ends where its row does."""
    alone = make_lm(lm.model, lm.tokenizer, batch_size=1)
    counts = []
    generate = alone._model_generate

    def watch(context, **kwargs):
        rows = generate(context=context, **kwargs)
        counts.append((tuple(context[0].tolist()), rows.shape[1] - context.shape[1]))
        return rows

    alone._model_generate = watch
    stock(alone, config, "none")
    return dict(counts)


def counted(lm, config, name="t.response_tokens"):
    """The same by prompt, as the room counts them in batches."""
    task_set = TaskSet(config, Local(lm))
    found = task_set.score(everything(task_set))[name]
    source = task_set._sources[name]
    prompts = [tuple(lm.tok_encode(group[0].args[0])) for group in source.requests]
    return dict(zip(prompts, found.tolist(), strict=True))


def test_tokens_in_batches_are_those_of_each_answer_generated_alone(lm, tasks):
    tasks.write("t", "generate_until", generation_kwargs=UNTIL)
    config = tasks.config({"task": "t", "metric": "print", "measures": ["response_tokens"]})
    expected = by_hand(lm, config)
    assert counted(lm, config) == expected
    assert len(expected) == 24
    assert len(set(expected.values())) > 6
    assert max(expected.values()) == 24 > sorted(expected.values())[12]


def test_tokens_may_be_the_metric_and_fewer_is_better(lm, tasks):
    tasks.write("t", "generate_until", generation_kwargs=UNTIL)
    config = tasks.config({"task": "t", "metric": "response_tokens"})
    (items,) = list_items(config)
    assert (items.task, items.metric, items.weight) == ("t", "response_tokens", 1.0)
    assert not items.higher_is_better
    assert counted(lm, config, "t") == by_hand(lm, tasks.config({"task": "t", "metric": "print"}))


def test_a_measure_leaves_the_score_alone_and_costs_no_generation(lm, tasks):
    tasks.write("t", "generate_until", generation_kwargs=UNTIL)
    plain = tasks.config({"task": "t", "metric": "print"})
    both = tasks.config({"task": "t", "metric": "print", "measures": ["response_tokens"]})
    calls = []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    alone = scores(lm, plain)
    once = len(calls)
    together = scores(lm, both)
    assert len(calls) == 2 * once > 0
    assert together["t"] == alone["t"] == stock(lm, plain)["t"]


def test_measures_stand_beside_the_score_in_the_same_items(tasks):
    tasks.write("t", "generate_until")
    entry = {"task": "t", "metric": "print", "weight": 3, "measures": ["response_tokens"]}
    score, measure = list_items(tasks.config(entry))
    assert (measure.task, measure.weight) == ("t.response_tokens", 0.0)
    assert (score.task, score.weight) == ("t", 3.0)
    assert (score.ids, score.excluded) == (measure.ids, measure.excluded)


def test_any_metric_of_the_task_may_be_a_measure(lm, tasks):
    tasks.write("t")
    config = tasks.config({"task": "t", "metric": "acc", "measures": ["acc_norm"]})
    found = scores(lm, config)
    assert found["t"] == stock(lm, config)["t"]
    other = tasks.config({"task": "t", "metric": "acc_norm"})
    assert found["t.acc_norm"] == stock(lm, other)["t"] != found["t"]


def test_a_measure_of_some_items_is_that_of_all(lm, tasks):
    tasks.write("t", "generate_until", generation_kwargs=UNTIL)
    config = tasks.config({"task": "t", "metric": "print", "measures": ["response_tokens"]})
    task_set = TaskSet(config, Local(lm))
    ids = everything(task_set)
    whole = task_set.score(ids)
    part = task_set.score({name: [ids[name][i] for i in (9, 2, 9)] for name in ids})
    for name in ids:
        assert part[name].tolist() == whole[name][[9, 2, 9]].tolist()
    assert task_set.score({"t.response_tokens": ids["t"]})["t.response_tokens"].tolist() == (
        whole["t.response_tokens"].tolist()
    )


def test_the_length_of_repeated_answers_is_their_mean(lm, tasks):
    tasks.write("t", "generate_until", generation_kwargs=UNTIL, repeats=4)
    sampled = {"do_sample": True, "temperature": 1.0}
    entry = {"task": "t", "metric": "print", "gen_kwargs": sampled}
    found = counted(lm, tasks.config({**entry, "measures": ["response_tokens"]})).values()
    assert any(value % 1 for value in found)
    assert all((4 * value) % 1 == 0 and 1 <= value <= 24 for value in found)


def test_tasks_with_other_settings_do_not_mix_their_counts(lm, tasks):
    """Requests that share a prompt are told apart by their generation settings."""
    tasks.write("t", "generate_until", generation_kwargs=UNTIL)
    tasks.write("u", "generate_until", generation_kwargs={**UNTIL, "max_gen_toks": 2})
    measures = {"metric": "print", "measures": ["response_tokens"]}
    both = tasks.config({"task": "t", **measures}, {"task": "u", **measures})
    for name in ("t", "u"):
        alone = tasks.config({"task": name, **measures})
        key = f"{name}.response_tokens"
        assert counted(lm, both, key) == counted(lm, alone, key)
    assert max(counted(lm, both, "u.response_tokens").values()) == 2


@pytest.mark.parametrize(
    ("said", "stop", "length", "cut"),
    [
        ("w1 w2 w5 w6", ["w9"], 4, True),
        ("w1 w2 </s> <pad> <pad>", [], 3, False),
        ("w1 w2 w5 </s>", [], 4, False),
        ("w1 <unk> w2 </s>", ["w2"], 3, False),
        ("w1 w2 w5 w6", ["w2 w5"], 3, False),
        ("w1 w9 w5 w2", ["w2", "w9", ""], 2, False),
        ("w1 w5 w4 w2", ["w2"], 4, False),
        ("w1 w2 <s> w4", ["<s>"], 3, False),
        ("w9", ["w9"], 1, False),
    ],
)
def test_an_answer_ends_with_the_token_that_stops_it(said, stop, length, cut, lm):
    tokens = lm.tokenizer.convert_tokens_to_ids(said.split())
    assert response_end(lm, tokens, stop) == (length, cut)


def test_every_end_token_of_the_model_ends_an_answer(lm):
    tokens = lm.tokenizer.convert_tokens_to_ids(["w1", "w2", "w5", "</s>"])
    assert response_end(lm, tokens, []) == (4, False)
    lm.model.generation_config.eos_token_id = [2, tokens[1]]
    assert response_end(lm, tokens, []) == (2, False)


@pytest.mark.parametrize(
    ("kind", "entry", "said"),
    [
        (
            "multiple_choice",
            {"metric": "response_tokens"},
            "fitness.tasks[0].metric: t generates nothing",
        ),
        (
            "generate_until",
            {"metric": "print", "measures": ["acc"]},
            "measures[0]: t has no metric",
        ),
        (
            "generate_until",
            {"metric": "print", "measures": ["print"]},
            "is the metric of t already",
        ),
    ],
)
def test_a_measure_the_task_does_not_have_is_refused(kind, entry, said, tasks):
    tasks.write("t", kind)
    with pytest.raises(InputError) as caught:
        list_items(tasks.config({"task": "t", **entry}))
    assert said in str(caught.value)


def test_a_measure_named_twice_is_refused(tasks):
    with pytest.raises(ValidationError, match="response_tokens listed twice"):
        tasks.config({"task": "t", "measures": ["response_tokens", "response_tokens"]})


def test_lm_eval_is_left_as_it_was(lm, tasks):
    tasks.write("t", "generate_until")
    before = json.dumps(sorted(vars(lm)))
    scores(lm, tasks.config({"task": "t", "metric": "response_tokens"}))
    assert json.dumps(sorted(vars(lm))) == before
