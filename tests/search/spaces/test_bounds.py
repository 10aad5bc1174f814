"""What `space.weights.genes` fixes and searches."""

from dataclasses import replace

import pytest

from evomerge.common.errors import InputError
from evomerge.methods import find_method
from evomerge.search.spaces.bounds import read_tuning


def test_a_method_of_another_package_has_parameters_of_its_own_by_its_dotted_name():
    theirs = replace(find_method("ties", "x"), name="package.module:ties")
    methods = [theirs, find_method("linear", "x")]
    genes = {"weight": [0.0, 1.0], "package.module:ties.density": 0.5}
    tuning = read_tuning(methods, genes, "genes")
    assert tuning.fixed["package.module:ties"] == {"density": 0.5}
    assert [(s.name, s.methods) for s in tuning.searched] == [
        ("weight", ("package.module:ties", "linear"))
    ]
    with pytest.raises(InputError, match=r"genes: package\.module:ties has no parameter 'dens'"):
        read_tuning(methods, {"package.module:ties.dens": 0.5}, "genes")


def test_a_name_with_a_parameter_and_more_dots_is_a_pattern():
    tuning = read_tuning([find_method("ties", "x")], {"weight.layer_0*.math": 0.5}, "genes")
    assert tuning.own.patterns == {"weight.layer_0*.math": 0.5}
    with pytest.raises(InputError, match=r"genes\.weight\.layer_0\*\.math: fits no gene"):
        tuning.own.check_used()
