from campaign_data import parsed, refusal


def test_a_budget_of_items_alone_allows_a_trial_for_each():
    budget = parsed(budget={"items": 500}).budget
    assert (budget.trials, budget.items) == (500, 500)
    assert parsed(budget={"items": 500, "trials": 9}).budget.trials == 9


def test_starts_are_names_runs_or_studies():
    found = parsed(initial=["uniform", {"run": "old"}, {"study": "sqlite:///x.db"}]).initial
    assert [type(start).__name__ for start in found] == ["str", "BestTrials", "StudyTrials"]
    assert "initial.0.run.trials" in refusal(initial=[{"run": "old", "trials": 0}])


def test_an_optimizer_of_another_package_keeps_its_name_and_options():
    optimizer = parsed(optimizer={"kind": "package.climb:Climber", "sigma": 0.3}).optimizer
    assert (optimizer.kind, optimizer.options) == ("package.climb:Climber", {"sigma": 0.3})
    assert optimizer.model_dump() == {"kind": "package.climb:Climber", "sigma": 0.3}
