"""Genomes as points whose distance means something."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.search.spaces.genes import Condition, Domain, Gene
from evomerge.search.surrogates.features import Features


def test_genomes_with_one_recipe_coincide_and_choices_are_as_far_apart_as_bounds():
    domain = Domain(
        [
            Gene("method", kind="categorical", choices=("linear", "ties", "dare")),
            Gene("density", when=(Condition("method", ("ties",)),)),
            Gene("rank", 2, 9, kind="int"),
            Gene("one", 3, 3, kind="int"),
        ]
    )
    where = Features(domain)

    def at(*genome):
        return where(np.array(genome))

    assert (at(0.1, 0.2, 0.26, 0.1) == at(0.3, 0.9, 0.36, 0.8)).all()
    assert np.abs(at(0.5, 0.2, 0.3, 0.5) - at(0.5, 0.9, 0.3, 0.5)).sum() == pytest.approx(0.7)
    assert np.linalg.norm(at(0.1, 0.5, 0.3, 0.5) - at(0.9, 0.5, 0.3, 0.5)) == pytest.approx(1)
    assert np.linalg.norm(at(0.1, 0.5, 0.0, 0.5) - at(0.1, 0.5, 1.0, 0.5)) == pytest.approx(7 / 8)
