"""A message about the file names the key, the value and the way out."""

import pytest
import yaml
from campaign_data import data, refusal


def test_a_misspelt_key_names_the_nearest_at_its_place():
    space = {"weights": {"method": "ties", "granularty": "layer"}}
    message = (
        "file.yaml: space.weights.granularty: unknown key; did you mean 'granularity'?; "
        "type: evomerge explain space.weights"
    )
    assert refusal(space=space) == message
    assert "fitness.zzz: unknown key; valid keys: allow_test_sets, audit, batch_size" in refusal(
        fitness={"tasks": [{"task": "pick"}], "zzz": 1}
    )


def test_kinds_of_a_union_are_no_part_of_the_key():
    assert refusal(fitness={"tasks": [{"task": "pick", "wait": 2}]}) == (
        "file.yaml: fitness.tasks.0.wait: unknown key; did you mean 'weight'?; "
        "type: evomerge explain fitness.tasks"
    )


def test_what_is_missing_or_of_the_wrong_kind_is_said_with_the_value():
    assert refusal(models={"base": "org/base"}) == (
        "file.yaml: models.experts: required, but not given; type: evomerge explain models.experts"
    )
    assert "models: expected a section with keys of its own (found 3)" in refusal(models=3)
    assert "(found 'many')" in refusal(budget={"trials": "many"})


def test_every_problem_has_a_line_and_each_is_said_once():
    lines = refusal(budget={"trials": 0}, seed="x", models=data()["models"] | {"x": 1})
    assert [line.split(": ")[1] for line in lines.split("\n")] == [
        "models.x",
        "budget.trials",
        "seed",
    ]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"models": {"base": "b", "experts": {}}}, "campaign: models.experts: expected at least 1"),
        ({"name": "my campaign"}, "name: expected a name of letters, digits, '.', '_' and '-'"),
        ({"name": ".."}, "name: it names the run's folder, so that dots alone will not do"),
        ({"name": 3}, "name: expected text (found 3); put it in quotes"),
        ({"workers": {"count": 0}}, "workers.count: expected at least 1 or 'auto' (found 0)"),
        ({"fitness": {"tasks": "arc"}}, "fitness.tasks: expected a list [...] (found 'arc')"),
        ({"initial": [{"run": 3}]}, "initial.0.run: expected text (found 3)"),
        (
            {"fitness": {"tasks": ["arc"]}},
            "fitness.tasks.0: expected a section with keys of its own (found 'arc'); write {task",
        ),
        (
            {"models": {"base": "b", "experts": ["zoo/math", "org/code@v1"]}},
            "models.experts: expected a section with keys of its own (found ['zoo/math', "
            "'org/code@v1']); give each a name: {math: zoo/math, code: org/code@v1}",
        ),
    ],
)
def test_no_words_of_pydantics_are_left(keys, said):
    assert f"file.yaml: {said}" in refusal(**keys)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("genes: {weight: (0, 1.5)}", "genes: weight: write a range with square brackets"),
        ("genes:\n  weight: (0, 1.5)", "genes: weight: write a range with square brackets"),
        ("genes: {weight: [a, 1]}", "genes.weight.0: expected a number (found 'a')"),
        ("genes: {weight: {low: 0}}", "genes.weight.high: required, but not given"),
        (
            "lines:\n  alpha: (0, 1)",
            "lines.alpha: expected a list [...] or a number (found '(0, 1)'); write a range with "
            "square brackets: [low, high]",
        ),
        ("dare: {density: [0.1]}", "dare.density: expected a list of at least 2 entries or"),
    ],
)
def test_a_value_with_several_forms_is_told_of_once(weights, said):
    space = {"weights": {"method": "ties", **yaml.safe_load(weights)}}
    [line] = refusal(space=space).split("\n")
    assert f"file.yaml: space.weights.{said}" in line


def test_an_expert_may_have_the_name_of_a_type():
    assert "models.experts.float: expected text (found 1)" in refusal(
        models={"base": "b", "experts": {"float": 1}}
    )
