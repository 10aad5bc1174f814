import pytest
from campaign_data import parsed, refusal

PICK = {"task": "pick"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"search": 0.5, "select": 0.2, "test": 0.4}}, "add up to 1.1, not 1"),
        ({"splits": {"search": 1.0, "select": 0.0, "test": 0.0}}, "select would be empty"),
        ({"splits": {"search": 0.5, "test": 0.5}}, "name exactly search, select, test"),
        ({"rungs": [64, 32, "all"]}, "write rising numbers of items, then all"),
        ({"rungs": [32]}, "write rising numbers of items, then all"),
        ({"tasks": [PICK, PICK]}, "pick listed twice; give each task once"),
        ({"tasks": [PICK, PICK | {"metric": "b", "measures": ["acc"]}]}, "another metric than acc"),
        ({"tasks": [PICK, PICK | {"metric": "b", "num_fewshot": 2}]}, "with other num_fewshot: "),
        ({"tasks": [PICK, {**PICK, "callable": "a:pick", "documents": "d"}]}, "pick listed twice"),
        ({"tasks": [PICK | {"measures": ["a", "a,strict"]}]}, "a listed twice"),
        ({"tasks": [PICK | {"fewshot_as_multiturn": True}]}, "needs apply_chat_template: true"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_way_out(changes, message):
    assert message in refusal(fitness={"tasks": [PICK]} | changes)


def test_few_shot_examples_are_turns_with_a_chat_template_unless_it_is_said():
    tasks = [
        PICK,
        {"task": "chat", "apply_chat_template": True},
        {"task": "flat", "apply_chat_template": True, "fewshot_as_multiturn": False},
    ]
    found = parsed(fitness={"tasks": tasks}).fitness.tasks
    assert [task.multiturn for task in found] == [False, True, False]


def test_a_plug_in_is_a_name_or_a_name_with_options():
    fitness = {"tasks": [PICK], "objective": "mean", "engine": {"kind": "api", "url": "x"}}
    found = parsed(fitness=fitness).fitness
    assert (found.objective.kind, found.objective.options) == ("mean", {})
    assert (found.engine.kind, found.engine.options) == ("api", {"url": "x"})
    assert found.objective.model_dump() == "mean"
