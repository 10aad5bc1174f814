"""A message about the file names the key, the value and the way out."""

from campaign_data import data, refusal


def test_a_misspelt_key_names_the_nearest_at_its_place():
    space = {"weights": {"method": "ties", "granularty": "layer"}}
    message = "file.yaml: space.weights.granularty: unknown key; did you mean 'granularity'?"
    assert refusal(space=space) == message
    assert "fitness.zzz: unknown key; valid keys: allow_test_sets, audit, batch_size" in refusal(
        fitness={"tasks": [{"task": "pick"}], "zzz": 1}
    )


def test_kinds_of_a_union_are_no_part_of_the_key():
    assert refusal(fitness={"tasks": [{"task": "pick", "wait": 2}]}) == (
        "file.yaml: fitness.tasks.0.wait: unknown key; did you mean 'weight'?"
    )


def test_what_is_missing_or_of_the_wrong_kind_is_said_with_the_value():
    assert refusal(models={"base": "org/base"}) == (
        "file.yaml: models.experts: required, but not given"
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
