"""The faster CatCMAwM gives the library's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from cmaes import CatCMAwM

from evomerge.search.optimizers.parts.catcma import FastCatCMAwM

STATE = ("_C", "_mean", "_pc", "_p_sigma", "_A")


def start(kind, continuous, ints, choices, population):
    genes = continuous + ints
    return kind(
        x_space=np.tile([0.0, 1.0], (continuous, 1)) if continuous else None,
        z_space=[(np.arange(k) + 0.5) / k for k in [3, 8, 5] * ints][:ints] or None,
        c_space=[3] * choices if choices else None,
        population_size=population,
        mean=np.full(genes, 0.4),
        sigma=0.2,
        cov=np.eye(genes),
        seed=0,
    )


def generation(strategy, draw):
    """A generation on a bumpy bowl, one in ten of them failures; returns the samples."""
    samples = [strategy.ask() for _ in range(strategy.population_size)]
    inside = [np.clip(sample._v_raw, 0, 1) for sample in samples]
    losses = [float(np.sum((v - 0.7) ** 2)) + draw.normal() * 0.1 for v in inside]
    losses = [np.inf if draw.random() < 0.1 else loss for loss in losses]
    told = [CatCMAwM.Solution(c=s.c, _v_raw=v) for s, v in zip(samples, inside, strict=True)]
    strategy.tell(list(zip(told, losses, strict=True)))
    return [sample._v_raw.tobytes() for sample in samples]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("continuous", "ints", "choices", "population", "generations"),
    [(20, 6, 3, None, 150), (0, 4, 0, 7, 150), (30, 0, 2, None, 60), (160, 40, 0, 40, 15)],
)
def test_every_number_is_the_librarys(continuous, ints, choices, population, generations):
    theirs, ours = (
        start(kind, continuous, ints, choices, population) for kind in (CatCMAwM, FastCatCMAwM)
    )
    draws = [np.random.default_rng(0) for _ in range(2)]
    for _ in range(generations):
        assert generation(ours, draws[0]) == generation(theirs, draws[1])
        for name in STATE:
            assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
        assert ours._sigma == theirs._sigma
        assert ours.should_stop() == theirs.should_stop()
    assert ours._sigma != pytest.approx(0.2, rel=1e-3)
