"""Which metric is chosen, which documents are examples, and what of a task is refused."""

from __future__ import annotations

import pytest
from fitness_reference import scores, stock

from evomerge.common.errors import InputError
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.task_set import TaskSet, list_items


def refused(config):
    with pytest.raises(InputError) as caught:
        list_items(config)
    return str(caught.value)


REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m['content'] }} {% endfor %}"
)


def test_few_shot_documents_are_never_scored(tasks, docs):
    tasks.write("t", fewshot_config={"sampler": "first_n"}, fewshot_split="test")
    (items,) = list_items(tasks.config({"task": "t", "num_fewshot": 3}))
    # The first three are everybody's examples; the fourth stands in when one of them is asked.
    assert items.excluded == set(items.ids[:4])
    (items,) = list_items(tasks.config({"task": "t"}))
    assert items.excluded == frozenset()


def test_a_test_document_found_among_the_examples_is_not_scored(tasks, docs):
    test = docs(24)
    copied = [test[7], *docs(1, seed=3)]
    tasks.write("t", test=[*test, test[7]], train=copied)
    (items,) = list_items(tasks.config({"task": "t", "num_fewshot": 2}))
    assert items.excluded == {items.ids[7], items.ids[7] + "#2"}


def test_too_few_items_left_by_few_shot_is_refused(tasks):
    tasks.write("t")
    message = refused(tasks.config({"task": "t", "num_fewshot": 5}))
    assert "fitness.tasks[0].task" in message
    assert "of 24 serve as one" in message
    assert "fewshot_split" in message
    assert "first_n" in message


def test_a_group_shares_its_weight_by_size(lm, tasks, docs):
    tasks.write("small", test=docs(6))
    tasks.write("large", test=docs(18, seed=2), tag="both")
    tasks.write_file("g", {"group": "g", "task": ["small", {"group": "sub", "task": ["large"]}]})
    config = tasks.config({"task": "g", "weight": 2})
    assert {i.task: i.weight for i in list_items(config)} == {"small": 0.5, "large": 1.5}
    assert scores(lm, config) == stock(lm, config)
    assert [i.task for i in list_items(tasks.config({"task": "both"}))] == ["large"]


def test_a_group_that_lm_eval_averages_by_task_is_weighted_by_task(tasks, docs):
    tasks.write("small", test=docs(6))
    tasks.write("large", test=docs(18, seed=2))
    means = [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]
    tasks.write_file(
        "g", {"group": "g", "task": ["small", "large"], "aggregate_metric_list": means}
    )
    assert {i.weight for i in list_items(tasks.config({"task": "g"}))} == {0.5}


def test_a_split_of_examples_that_the_data_lacks_is_named_too(tasks, docs):
    tasks.write("t", train=docs(5), fewshot_split="examples")
    message = refused(tasks.config({"task": "t", "num_fewshot": 2}))
    assert "fewshot_split is 'examples', but the data has 'test', 'train' only" in message


def test_a_document_without_choices_is_refused_by_its_number(tasks, docs):
    test = docs(24)
    test[7]["choices"], test[9]["choices"] = [], []
    tasks.write("t", test=test)
    message = refused(tasks.config({"task": "t"}))
    assert "document 8 of 24 of 't' (and 1 more) has no choices" in message
    assert test[7]["question"] in message


def test_a_document_whose_choices_are_none_is_named_too(tasks, docs):
    test = docs(24)
    test[7]["choices"] = None
    tasks.write("t", test=test)
    message = refused(tasks.config({"task": "t"}))
    assert "the requests of 't' cannot be built: " in message
    assert f"(document 8 of 24: {str(test[7])[:40]}" in message


@pytest.mark.parametrize("answer", [4, -1, None])
def test_an_answer_that_is_none_of_the_choices_is_told(answer, tasks, docs, caplog):
    test = docs(24)
    tasks.write("t", test=test)
    list_items(tasks.config({"task": "t"}))
    assert not [r for r in caplog.records if "is none of its" in r.message]
    test[3]["gold"] = test[5]["gold"] = answer
    tasks.write("t", test=test)
    list_items(tasks.config({"task": "t"}))
    [told] = [r.message for r in caplog.records if "is none of its" in r.message]
    assert "fitness.tasks[0]: the answer of document 4 of 24 of 't' (and 1 more), " in told


def told_of(caplog, words):
    return [record.message for record in caplog.records if words in record.message]


def test_a_value_that_some_documents_lack_is_told_if_the_prompt_names_it(tasks, docs, caplog):
    test = docs(24)
    tasks.write("t", test=[{**one, "beside": None if i else 1} for i, one in enumerate(test)])
    list_items(tasks.config({"task": "t"}))
    assert not told_of(caplog, "has no")
    del test[3]["question"], test[9]["question"]
    tasks.write("t", test=test)
    list_items(tasks.config({"task": "t"}))
    (message,) = told_of(caplog, "has no")
    assert "document 4 of 24 of 't' (and 1 more) has no 'question', for which" in message
    caplog.clear()
    tasks.write("t", test=test, doc_to_text="q {% if question %}: {{question}}{% endif %}")
    list_items(tasks.config({"task": "t"}))
    assert not told_of(caplog, "has no")


def test_a_right_answer_that_stands_before_itself_is_told(tasks, docs, caplog):
    test = docs(24)
    test[5].update(choices=["w1", "w2", "w1", "w3"], gold=0)
    tasks.write("t", test=test)
    list_items(tasks.config({"task": "t"}))
    assert not told_of(caplog, "stands among its choices")
    test[5]["gold"] = 2
    tasks.write("t", test=test)
    list_items(tasks.config({"task": "t"}))
    (message,) = told_of(caplog, "stands among its choices")
    assert "the right answer of document 6 of 24 of 't', 'w1'" in message


def test_a_chat_template_that_is_no_template_is_named_with_its_line(lm, tasks):
    tasks.write("t")
    lm.tokenizer.chat_template = "{% for m in messages %}\n{{ m['content'] }"
    with pytest.raises(InputError) as caught:
        TaskSet(tasks.config({"task": "t", "apply_chat_template": True}), Local(lm))
    assert str(caught.value).startswith(
        "fitness.tasks[0].apply_chat_template: the base model's chat template is no template (line "
        "2: unexpected '}'); mend it"
    )


def test_an_instruction_that_the_chat_template_refuses_is_refused(lm, tasks):
    tasks.write("t")
    lm.tokenizer.chat_template = REFUSING
    entry = {"task": "t", "apply_chat_template": True}
    TaskSet(tasks.config(entry), Local(lm))
    with pytest.raises(InputError) as caught:
        TaskSet(tasks.config({**entry, "system_instruction": "w1 w2"}), Local(lm))
    assert str(caught.value).startswith(
        "fitness.tasks[0].system_instruction: the base model's chat template refuses system turns "
        "(no system); leave it out"
    )


def test_a_description_that_the_chat_template_refuses_is_told_of_and_left_out_as_in_lm_eval(
    lm, tasks, caplog
):
    tasks.write("t", description="w1 w2")
    lm.tokenizer.chat_template = REFUSING
    config = tasks.config({"task": "t", "apply_chat_template": True})
    found = scores(lm, config)
    told = [record.message for record in caplog.records]
    assert [m for m in told if "(no system): the description of t is left out" in m] == told[:1]
    for task, values in stock(lm, config).items():
        assert found[task] == pytest.approx(values)


def test_an_unknown_metric_lists_the_tasks_metrics(tasks):
    tasks.write("t")
    message = refused(tasks.config({"task": "t", "metric": "acc_nrm"}))
    assert message == (
        "fitness.tasks[0].metric: t has no metric 'acc_nrm'; it has: acc,none, acc_norm,none; "
        "did you mean 'acc_norm'?"
    )
    assert "has no metric 'acc,strict'" in refused(
        tasks.config({"task": "t", "metric": "acc,strict"})
    )


def test_a_metric_that_measures_nothing_is_refused(tasks):
    tasks.write(
        "t", metric_list=[{"metric": "acc", "aggregation": "bypass"}, {"metric": "acc_norm"}]
    )
    message = refused(tasks.config({"task": "t", "metric": "acc"}))
    assert "'acc' of t is not aggregated to a score; usable: acc_norm" in message


def test_several_filters_ask_for_one(tasks):
    take = [{"function": "take_first"}]
    filters = [{"name": "strict", "filter": take}, {"name": "loose", "filter": take}]
    tasks.write("t", "generate_until", filter_list=filters)
    message = refused(tasks.config({"task": "t", "metric": "print"}))
    assert "name one: 'print,strict', 'print,loose'" in message


def test_what_depends_on_the_model_is_said_before_scoring(lm, llama, tokenizer, tasks):
    tasks.write("t", "generate_until")
    entry = {"task": "t", "metric": "print"}
    short = make_lm(llama(length=6), tokenizer, batch_size=8)
    with pytest.raises(InputError, match="may generate 6 tokens, but the model reads 6"):
        TaskSet(tasks.config(entry), Local(short))
    lm.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        TaskSet(tasks.config({**entry, "apply_chat_template": True}), Local(lm))
