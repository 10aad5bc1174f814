"""What evomerge says of mergekit's methods is what mergekit 0.1.5 says of them itself."""

from __future__ import annotations

import pytest
from mergekit.merge_methods.base import BasePolicy, ParameterScope
from mergekit.merge_methods.registry import registered_methods

from evomerge.mergekit.methods import CHOICES, FORMS, NEUTRAL, RENAMED, pairings
from evomerge.methods import methods

THEIRS = {method.spec.name: method.spec for method in registered_methods()}


def test_every_method_of_mergekits_is_known():
    assert set(FORMS) == set(THEIRS)


@pytest.mark.parametrize("name", FORMS)
def test_parameters_have_mergekits_types_scopes_and_defaults(name):
    form, spec = FORMS[name], THEIRS[name]
    ours = {p: (parameter.type, parameter.default, False) for p, parameter in form.shared.items()}
    ours |= {
        p: (parameter.type, parameter.default, True) for p, parameter in form.per_model.items()
    }
    theirs = {
        p.name: (
            p.value_type if p.value_type in (bool, int) else float,
            None if p.required else 1.0 if p.default is None else p.default,
            p.scope is not ParameterScope.SHARED,
        )
        for p in spec.parameters
    }
    assert ours == theirs


@pytest.mark.parametrize("name", FORMS)
def test_counts_of_models_are_mergekits(name):
    form, contract = FORMS[name], THEIRS[name].contract
    policies = {
        "needed": BasePolicy.REQUIRED,
        "optional": BasePolicy.OPTIONAL,
        "ignored": BasePolicy.IGNORED,
    }
    assert contract.base is policies[form.base]
    least = max(contract.min_inputs, contract.min_non_base or 0)
    most = contract.max_inputs
    if contract.max_non_base is not None:
        most = contract.max_non_base + 1
    assert form.inputs == (least, most)


@pytest.mark.parametrize("name", pairings())
def test_the_exceptions_are_about_parameters_that_exist(name):
    ours, form = methods()[name], FORMS[name]
    theirs = {**form.per_model, **form.shared}
    for (method, parameter), renamed in RENAMED.items():
        assert method != name or (parameter in theirs and renamed in ours.parameters)
    for (method, parameter), values in CHOICES.items():
        if method == name and parameter in ours.parameters:
            assert set(ours.parameters[parameter].choices) == set(values)
            assert all(set(switches) <= set(theirs) for switches in values.values())
    for method, parameter in NEUTRAL:
        assert method != name or parameter in ours.parameters
