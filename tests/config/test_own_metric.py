from campaign_data import parsed, refusal

DOCUMENTS = {"documents": "docs.jsonl"}


def test_a_metric_of_ones_own_is_named_after_its_function():
    [task] = parsed(fitness={"tasks": [{"callable": "a.b:polite"} | DOCUMENTS]}).fitness.tasks
    assert (task.module, task.function, task.task) == ("a.b", "polite", "polite")


def test_a_metric_that_names_no_function_is_refused():
    message = "write it as module:function, such as metrics:politeness"
    for callable in ("metrics", "metrics:", ":polite", "metrics:not a name"):
        assert message in refusal(fitness={"tasks": [{"callable": callable} | DOCUMENTS]})
