"""LiNeS in a campaign: what is merged, scaled by depth."""

from __future__ import annotations

import numpy as np
import pytest
from spaces import DIGESTS, layout

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig
from evomerge.search.spaces.build import build_space

WEIGHTS = {"method": "ties", "genes": {"weight": [0, 1.5]}}


def space(lines, path="none", **weights):
    section = {**WEIGHTS, **weights, "lines": lines}
    return build_space(SpaceConfig(weights=section, path=path), layout(), DIGESTS, seed=1)


def lambdas(recipe):
    return {merge.slot: merge.parameters["lambda"] for merge in recipe.merges}


def test_two_genes_scale_every_merge_by_its_depth():
    s = space({"alpha": [0, 1], "beta": [0, 2]})
    assert [gene.name for gene in s.genes][:2] == ["lines.alpha", "lines.beta"]
    genome = s.initial.copy()
    genome[:2] = 0.5
    assert lambdas(s.decode(genome)) == {None: 0.5, 0: 0.5, 1: 1.0, 2: 1.5}
    assert s.statistics(genome)["lines.beta"] == 1.0


def test_the_search_begins_at_the_unscaled_merge():
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    s = space({})
    assert s.decode(s.initial).digest == plain.decode(plain.initial).digest
    assert s.baselines().keys() == plain.baselines().keys()


def test_a_scale_with_a_value_is_no_gene():
    s = space({"alpha": 0.5, "beta": [0, 1]})
    assert [gene.name for gene in s.genes][:2] == ["lines.beta", "weight.embeddings.math"]
    assert lambdas(s.decode(s.initial))[0] == 0.5


def test_crossovers_leave_each_side_to_one_parent():
    s = space({})
    a, b = np.zeros(s.dimension), np.ones(s.dimension)
    assert s.cuts[0] == 0
    for cut in s.cuts[1:]:
        child = s.recombine(a, b, cut, 1.0)
        assert set(child[:cut]) | set(child[cut:]) == {0.0, 1.0}


def test_a_path_runs_through_scaled_layers():
    s = space({"alpha": 0.5, "beta": 1.0}, path={"kind": "given", "layers": [0, 1, 2, 2]})
    assert lambdas(s.decode(s.initial)) == {None: 0.5, 0: 0.5, 1: 1.0, 2: 1.5, 3: 1.5}


@pytest.mark.parametrize(
    ("lines", "weights", "message"),
    [
        ({}, {"method": "linear"}, r"space\.weights\.lines: linear has no 'lambda'"),
        ({}, {"genes": {"weight": [0, 1], "lambda": [0, 1]}}, r"must leave fixed"),
        ({"alpha": [0, 90]}, {}, r"space\.weights\.lines: with alpha 90, lambda is"),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_the_search(lines, weights, message):
    with pytest.raises(InputError, match=message):
        space(lines, **weights)
