from campaign_data import data, parsed, refusal

SPACE = data()["space"]


def test_the_first_stages_space_is_the_campaigns():
    other = {"weights": {"method": "linear", "genes": {"weight": [0, 1]}}}
    sections = {"space": other, "stages": [{"name": "one", "space": other}]}
    assert parsed(**sections).space.weights.method == "linear"
    clash = refusal(space=SPACE, stages=[{"name": "one", "space": other}])
    assert "give space or stages, not both" in clash


def test_a_stage_is_a_model_with_a_name_of_its_own():
    for name in ("base", "merged", "math"):
        assert f"stages: '{name}' is taken" in refusal(stages=[{"name": name, "space": SPACE}])
    twice = [{"name": "one", "space": SPACE}] * 2
    assert "stages: 'one' is taken" in refusal(stages=twice)


def test_a_campaign_with_stages_begins_in_a_stage():
    stages = [{"name": "one", "space": SPACE}]
    assert "gives it in a stage" in refusal(stages=stages, initial=["uniform"])
