"""Parameter settings: evaluated to mergekit's own values."""

import pytest
from mergekit.config import evaluate_setting

from evomerge.mergekit.settings import depth, evaluate, parse_setting

SETTINGS = [
    0.3,
    "1e-3",
    [0.0, 1.0, 0.25],
    [],
    [{"filter": "mlp", "value": [0.1, "2e-1"]}, {"value": 0.5}],
    [{"filter": "mlp", "value": 0.1}],
    {"filter": "*", "value": [1, 2, 3, 4, 5]},
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("layers", [1, 2, 6, 23])
def test_settings_evaluate_as_mergekits_bit_for_bit(setting, layers):
    from mergekit.config import ConditionalParameter
    from pydantic import TypeAdapter

    for name in ("model.layers.3.mlp.up_proj.weight", "model.norm.weight"):
        for t in {0.0, *(depth(i, layers) for i in range(layers))}:
            theirs = setting
            if isinstance(setting, dict):
                theirs = ConditionalParameter(**setting)
            elif isinstance(setting, list) and setting and isinstance(setting[0], dict):
                theirs = [ConditionalParameter(**entry) for entry in setting]
            expected = evaluate_setting(
                name, theirs, t, validate=TypeAdapter(float).validate_python
            )
            assert evaluate(parse_setting(setting, float), name, t) == expected


def test_gradients_of_truth_values_step_as_mergekits_do():
    from pydantic import TypeAdapter

    for t in (0.0, 0.3, 0.5, 0.99, 1.0):
        expected = evaluate_setting(
            "x", [True, False, 1], t, validate=TypeAdapter(bool).validate_python
        )
        assert evaluate(parse_setting([True, False, 1], bool), "x", t) is expected
