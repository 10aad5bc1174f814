"""Derivatives in a recipe's coefficients become those in its genome, in every kind of space."""

from __future__ import annotations

import numpy as np
import pytest
from spaces import DIGESTS, layout

from evomerge.config import SpaceConfig
from evomerge.search.spaces.build import build_space
from evomerge.search.spaces.space import Space, _coefficients

LOG = {"low": 0.1, "high": 2.0, "log": True}
SPACES = {
    "layer": {"weights": {"method": "ties", "genes": {"weight": [0, 1.5], "density": [0.2, 1]}}},
    "module": {
        "weights": {
            "method": "task_arithmetic",
            "granularity": "module",
            "genes": {"weight": LOG, "lambda": [0.5, 1.5], "weight.layer_1*": 0.5},
        }
    },
    "methods": {
        "weights": {
            "method": ["ties", "linear"],
            "methods_per": "group",
            "choose_experts": True,
            "genes": {"weight": [0, 1.5], "ties.lambda": [0.5, 1.5]},
        }
    },
    "dare": {"weights": {"method": "ties", "genes": {"weight": [0, 1]}, "dare": {}}},
    "lines": {
        "weights": {
            "method": "ties",
            "genes": {"weight": [0, 1]},
            "lines": {"alpha": [0.2, 1.5], "beta": [0, 1]},
            "dare": {"density": [0.2, 1], "per": "group"},
        }
    },
    "path": {
        "weights": {"method": "ties", "genes": {"weight": [0, 1]}, "lines": {}},
        "path": {"kind": "given", "layers": [0, 1, 2, 1, 2]},
    },
    "path of others": {"path": {"kind": "layer_swap", "outer": "lang", "inner": "math"}},
}


@pytest.mark.parametrize("kind", SPACES)
def test_the_chain_rule_is_that_of_differences_of_decode(kind):
    space = build_space(SpaceConfig(**SPACES[kind]), layout(), DIGESTS, seed=1)
    random = np.random.default_rng(0)
    for _ in range(3):
        genome = random.uniform(0.1, 0.9, space.dimension)
        keys = _coefficients(space.decode(genome))
        derivatives = {key: random.normal() for key in keys}
        found = space.pull_back(genome, derivatives)
        expected = Space.pull_back(space, genome, derivatives)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
        assert kind == "path of others" or found.any()
        assert not found[space.discrete].any()


def test_a_slope_follows_the_genes_scale():
    space = build_space(SpaceConfig(**SPACES["module"]), layout(), DIGESTS, seed=1)
    for gene in space.genes:
        slope = (gene.value(0.4 + 1e-6) - gene.value(0.4 - 1e-6)) / 2e-6
        assert gene.slope(0.4) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("kind", ["layer", "methods", "dare", "lines", "path"])
def test_vertices_are_each_model_alone_in_every_group(kind):
    space = build_space(SpaceConfig(**SPACES[kind]), layout(), DIGESTS, seed=1)
    hulls = space.vertices()
    for name, point in zip(DIGESTS, hulls.points, strict=True):
        for merge in space.decode(point).merges:
            weights = {expert: own["weight"] for expert, own in merge.experts.items()}
            assert weights == {expert: float(expert == name) for expert in ("math", "lang")}
    # each gene of a weight moves in one block, and no other gene in any
    moved = [space.genes[index].name for block in hulls.blocks for index in block]
    assert sorted(moved) == sorted(g.name for g in space.genes if g.name.startswith("weight."))
    assert len({len(block) for block in hulls.blocks}) == 1


def test_where_experts_have_no_weights_there_are_no_vertices():
    genes = {"weights": {"method": "task_arithmetic", "genes": {"lambda": [0, 1]}}}
    for config in (genes, SPACES["path of others"]):
        space = build_space(SpaceConfig(**config), layout(), DIGESTS, seed=1)
        assert space.vertices() is None
