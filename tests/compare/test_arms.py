"""Arms of a comparison are read from the command line, and wrong ones refused."""

from __future__ import annotations

import pytest

from evomerge.common.errors import InputError
from evomerge.compare.arms import parse_arms
from evomerge.config import OptimizerConfig

OWN = OptimizerConfig(kind="cma", population=4)


def test_arms_are_names_with_options_in_braces_or_none():
    arms = parse_arms("cma, random,optuna:TPESampler,cma:{sigma: 0.1, population: 8}", OWN)
    assert [a.optimizer.kind for a in arms] == ["cma", "random", "optuna:TPESampler", "cma"]
    assert arms[0].optimizer == OWN
    assert arms[3].optimizer.options == {"sigma": 0.1, "population": 8}
    assert len({a.folder for a in arms}) == 4
    assert all("/" not in a.folder and " " not in a.folder for a in arms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        ("cma,cma", "'cma' stands there twice"),
        ("cma:{sigma: 0.1", "never closed"),
        ("cma:{sigma}}", "write it as name"),
        ("cma:{kind: random}", "kind stands before"),
    ],
)
def test_optimizers_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_arms(text, OWN)


def test_screening_alone_is_no_other_optimizer():
    screened = OptimizerConfig(kind="cma", population=4, screen=3)
    assert parse_arms("cma:{screen: 3}", OWN)[0].optimizer == screened
    assert parse_arms("cma", screened)[0].optimizer == screened
    assert parse_arms("cma:{screen: 1}", screened)[0].optimizer == OWN
    assert parse_arms("cma:{sigma: 0.1, screen: 3}", OWN)[0].optimizer.options == {"sigma": 0.1}
    with pytest.raises(InputError, match=r"--optimizers: 'cma:\{screen: 0\}': screen: .*found 0"):
        parse_arms("cma:{screen: 0}", OWN)
