from __future__ import annotations

import numpy as np
import pytest

from evomerge.config import OptimizerConfig
from evomerge.errors import InputError
from evomerge.judging.scores import Scores
from evomerge.search.domain import Domain, Gene
from evomerge.search.optimizers import build_optimizer, optimizers
from evomerge.search.optimizers.cma import CmaEs

NAMES = list(optimizers())


def build(name, dimension=6, seed=0, **options):
    config = OptimizerConfig(kind=name, **options)
    return build_optimizer(config, box(dimension), seed)


def box(dimension):
    genes = [Gene(f"g{i}") for i in range(dimension)]
    return Domain(genes, np.full(dimension, 0.4))


def sphere(genome):
    return Scores(value=-float(np.sum((genome - 0.7) ** 2)), se=0.0, n=1)


def run(optimizer, record, asks):
    """One worker: ask, score, tell; every fifth candidate fails."""
    for index in range(len(record), asks):
        proposal = optimizer.ask(index)
        scores = None if index % 5 == 4 else sphere(proposal.genome)
        optimizer.tell(proposal, scores)
        record.append((proposal, scores))
    return record


@pytest.mark.parametrize("name", NAMES)
def test_replaying_any_prefix_continues_exactly(name):
    whole = run(build(name), [], 60)
    for cut in (1, 7, 8, 9, 33):
        resumed = build(name)
        for proposal, scores in whole[:cut]:
            resumed.tell(proposal, scores)
        again = run(resumed, whole[:cut], 60)
        for (a, _), (b, _) in zip(whole, again, strict=True):
            assert a.tells == b.tells
            assert a.genome.tobytes() == b.genome.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_asks_answer_while_others_are_in_flight_and_differ(name):
    optimizer = build(name)
    proposals = [optimizer.ask(i) for i in range(40)]
    assert len({p.genome.tobytes() for p in proposals}) == 40
    for proposal in reversed(proposals):
        optimizer.tell(proposal, sphere(proposal.genome))
    assert optimizer.ask(40).tells == 40


@pytest.mark.parametrize("name", NAMES)
def test_genomes_stay_in_the_unit_cube(name):
    record = run(build(name, dimension=4, seed=3), [], 80)
    genomes = np.stack([proposal.genome for proposal, _ in record])
    assert genomes.shape == (80, 4)
    assert genomes.min() >= 0
    assert genomes.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_seeds_give_different_searches(name):
    assert not np.array_equal(build(name, seed=0).ask(0).genome, build(name, seed=1).ask(0).genome)


def test_asking_twice_for_one_index_gives_one_answer():
    optimizer = build("cma")
    assert optimizer.ask(5).genome.tobytes() == optimizer.ask(5).genome.tobytes()


def test_cma_finds_the_optimum_and_beats_random():
    def best(name):
        return max(s.value for _, s in run(build(name), [], 250) if s)

    assert best("cma") > -5e-3
    assert best("cma") > best("random")


def test_cma_restarts_with_a_doubled_population_and_ignores_results_from_before():
    optimizer = build("cma", population=4)
    assert isinstance(optimizer, CmaEs)
    early = optimizer.ask(0)
    index = 1
    while optimizer._restarts == 0:
        proposal = optimizer.ask(index)
        optimizer.tell(proposal, Scores(value=0.0, se=0.0, n=1))  # flat: stops for lack of change
        index += 1
    assert optimizer._strategy.population_size == 8
    optimizer.tell(early, sphere(early.genome))
    assert optimizer._arrived == []
    late = optimizer.ask(index)
    optimizer.tell(late, sphere(late.genome))
    assert len(optimizer._arrived) == 1


def test_cma_survives_a_generation_of_failures():
    optimizer = build("cma", population=4)
    for index in range(12):
        optimizer.tell(optimizer.ask(index), None)
    assert np.isfinite(optimizer.ask(12).genome).all()


def test_cma_is_separable_above_two_hundred_genes():
    from cmaes import SepCMA

    assert isinstance(build("cma", dimension=201)._strategy, SepCMA)
    assert not isinstance(build("cma", dimension=200)._strategy, SepCMA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cmaa"}, "optimizer.kind: no optimizer is called 'cmaa'; did you mean 'cma'"),
        (
            {"kind": "cma", "sigm": 0.1},
            "optimizer.sigm: unknown option of cma; did you mean 'sigma'",
        ),
        ({"kind": "cma", "sigma": "wide"}, "optimizer.sigma"),
        ({"kind": "cma", "population": 1}, "optimizer.population"),
    ],
)
def test_wrong_optimizer_sections_are_refused_by_key(options, message):
    with pytest.raises(InputError, match=message):
        build_optimizer(OptimizerConfig(**options), box(5), 0)


def test_cma_with_a_single_gene_is_refused():
    with pytest.raises(InputError, match="at least two genes"):
        build("cma", dimension=1)
