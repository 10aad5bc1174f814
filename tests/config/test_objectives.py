from campaign_data import parsed, refusal

TASKS = {"tasks": [{"task": "pick"}]}


def test_a_constraint_is_one_of_the_two():
    both = {"negative_flips": {"against": "base", "at_most": 0.1}, "not_below": {"task": "pick"}}
    for constraint in ({}, both):
        assert "write one constraint an entry" in refusal(
            fitness=TASKS | {"constraints": [constraint]}
        )


def test_a_constraint_knows_its_task_and_the_model_it_compares_with():
    flips = {"negative_flips": {"against": "base", "at_most": 0.1}}
    below = {"not_below": {"task": "pick", "by": 0.02}}
    first, second = parsed(fitness=TASKS | {"constraints": [flips, below]}).fitness.constraints
    assert (first.kind, first.task, first.model) == ("negative_flips", None, ("base", "against"))
    assert (second.kind, second.task) == ("not_below", "pick")
    assert second.model == ("best_parent", "model")
