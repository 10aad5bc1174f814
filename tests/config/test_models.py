import pytest
from campaign_data import refusal


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": {"base": "x/y"}}, "an expert may not be called 'base'"),
        ({"experts": {"a.b": "x/y"}}, "may hold letters, digits, '-' and '_' only"),
        ({"experts": {}}, "models.experts"),
        ({"align": ["maths"]}, "align: no expert 'maths'; the experts are math"),
    ],
)
def test_models_that_cannot_be_named_are_refused(changes, message):
    models = {"base": "org/base", "experts": {"math": "./math"}}
    assert message in refusal(models=models | changes)
