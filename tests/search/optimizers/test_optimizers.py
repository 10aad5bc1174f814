"""What every optimizer must do, over the whole registry."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from domains import DOMAINS, box, build, mixed, numbers, run, score, sphere
from optimizer_runs import DESCENTS, OWN, SMALL, fly

from evomerge.common.errors import InputError
from evomerge.config import OptimizerConfig
from evomerge.judging.scores import Scores
from evomerge.search.optimizers import build_optimizer, optimizers
from evomerge.search.spaces.genes import Domain, Gene

NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "optuna:GPSampler" else name
    for name in optimizers()
]

DIFFERING = [name for name in NAMES if name not in DESCENTS]

NUMBERS_ONLY = ("map",)
"""Our own that refuse choices; what they do among them is tested over numbers."""


def build_or_skip(name, domain, seed=0):
    """Samplers of others may refuse a domain; our own bear every one, but for choices."""
    try:
        return build(name, domain, seed, **SMALL.get(name, {}))
    except InputError:
        choices = any(gene.kind == "categorical" for gene in domain.genes)
        assert name not in OWN or (name in NUMBERS_ONLY and choices)
        pytest.skip(f"{name} refuses this domain")


def mixture(name):
    """A domain of several kinds of genes, all that the optimizer bears."""
    return numbers() if name in NUMBERS_ONLY else mixed()


@pytest.mark.parametrize("kind", DOMAINS)
@pytest.mark.parametrize("name", NAMES)
def test_replaying_any_prefix_continues_exactly(name, kind):
    domain = DOMAINS[kind]()
    asks = 20 if name == "optuna:GPSampler" else 42

    def measure(genome):
        return score(domain, genome)

    whole = run(build_or_skip(name, domain), [], asks, measure)
    for cut in (1, 8, 9, asks - 4):
        resumed = build_or_skip(name, domain)
        for proposal, scores in whole[:cut]:
            resumed.tell(proposal, scores)
        again = run(resumed, whole[:cut], min(cut + 12, asks), measure)
        for (a, _), (b, _) in zip(whole, again, strict=False):
            assert (a.tells, a.parents) == (b.tells, b.parents)
            assert a.genome.tobytes() == b.genome.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_replay_is_exact_with_constraints_and_several_objectives(name):
    if name == "optuna:CmaEsSampler":
        pytest.skip("takes one objective only")
    domain = mixture(name)

    def measure(genome):
        scores = score(domain, genome)
        pair = (scores.value, -float(genome[0]))
        return Scores(scores.value, 0.0, 1, objectives=pair, violation=max(0, genome[3] - 0.8))

    whole = run(build_or_skip(name, domain), [], 24, measure)
    for cut in (2, 17):
        resumed = build_or_skip(name, domain)
        for proposal, scores in whole[:cut]:
            resumed.tell(proposal, scores)
        again = run(resumed, whole[:cut], 24, measure)
        assert [p.genome.tobytes() for p, _ in again] == [p.genome.tobytes() for p, _ in whole]


@pytest.mark.parametrize("name", NAMES)
def test_starts_are_proposed_first_and_learned_from(name):
    domain = box()
    starts = [np.full(6, 0.7), np.full(6, 0.2)]
    record = run(build_or_skip(name, Domain(domain.genes, domain.initial, starts)), [], 20)
    assert [p.genome.tolist() for p, _ in record[:2]] == [s.tolist() for s in starts]
    assert record[0][1].value == 0
    assert all(np.isfinite(p.genome).all() for p, _ in record)


@pytest.mark.parametrize("name", DIFFERING)
def test_asks_answer_while_others_are_in_flight_and_differ(name):
    optimizer = build_or_skip(name, box())
    proposals = [optimizer.ask(i) for i in range(40)]
    assert len({p.genome.tobytes() for p in proposals}) == 40
    for proposal in reversed(proposals):
        optimizer.tell(proposal, sphere(proposal.genome))
    assert optimizer.ask(40).tells == 40


@pytest.mark.parametrize("name", NAMES)
def test_a_resume_among_several_workers_loses_and_repeats_nothing(name):
    domain = mixture(name)
    asks = 40
    live = build_or_skip(name, domain)
    record, waiting, asked = fly(live, [], deque(), 0, asks, domain)
    resumed = build_or_skip(name, domain)
    for proposal, scores in record:
        resumed.tell(proposal, scores)
    if name in OWN:  # what is in flight is no part of their state
        assert resumed.ask(asked).genome.tobytes() == live.ask(asked).genome.tobytes()
    whole, left, _ = fly(resumed, list(record), deque(waiting), asked, asks, domain)
    assert not left
    assert sorted(p.ask for p, _ in whole) == list(range(asks))
    assert resumed.tells == asks
    genomes = np.stack([p.genome for p, _ in whole])
    assert genomes.min() >= 0
    assert genomes.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_genomes_stay_in_the_unit_cube(name):
    corner = np.full(4, 1.3)  # the best lies outside, so the search leans on the walls
    optimizer = build_or_skip(name, box(4), seed=3)
    record = run(
        optimizer,
        [],
        25 if name == "optuna:GPSampler" else 80,
        lambda genome: Scores(-float(np.sum((genome - corner) ** 2)), 0.0, 1),
    )
    genomes = np.stack([proposal.genome for proposal, _ in record])
    assert genomes.shape[1] == 4
    assert genomes.min() >= 0
    assert genomes.max() <= 1


@pytest.mark.parametrize("name", DIFFERING)
def test_seeds_give_different_searches(name):
    first, second = (
        [build_or_skip(name, box(), seed=seed).ask(i).genome.tobytes() for i in range(5)]
        for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("name", NAMES)
def test_asking_twice_for_one_index_gives_one_answer(name):
    optimizer = build_or_skip(name, box())
    assert optimizer.ask(5).genome.tobytes() == optimizer.ask(5).genome.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_failures_is_survived(name):
    optimizer = build_or_skip(name, mixture(name))
    for index in range(30):
        optimizer.tell(optimizer.ask(index), None)
    assert np.isfinite(optimizer.ask(30).genome).all()


SINGLE = [n for n in OWN if n not in ("random", "map_elites", *DESCENTS)]

BEATING = {"map": {"interactions": False, "front": 60}}
"""Options with which an optimizer fits a budget of 200 for twenty genes, and is quick."""


@pytest.mark.parametrize("name", SINGLE)
def test_at_equal_budgets_it_beats_random(name):
    def best(name, seed):
        optimizer = build(name, box(20), seed, **BEATING.get(name, {}))
        return max(s.value for _, s in run(optimizer, [], 200) if s)

    seeds = range(2)
    ours, theirs = (np.mean([best(n, seed) for seed in seeds]) for n in (name, "random"))
    assert ours > theirs + 0.2


@pytest.mark.parametrize("name", SINGLE)
def test_on_a_mixed_domain_it_beats_random(name):
    domain = mixture(name)

    def best(name, seed):
        optimizer = build(name, domain, seed, **BEATING.get(name, {}))
        record = run(optimizer, [], 200, lambda genome: score(domain, genome))
        return max(s.value for _, s in record if s)

    seeds = range(3)
    assert np.mean([best(name, s) for s in seeds]) > np.mean([best("random", s) for s in seeds])


@pytest.mark.parametrize("name", optimizers())
def test_every_option_stands_in_the_docstring_of_the_constructor(name):
    from evomerge.common.plugins import options

    kind = optimizers()[name]
    text = kind.__init__.__doc__ or ""
    if name in OWN:
        assert all(f"`{option}`" in text or f" {option}: " in text for option in options(kind))
    assert kind.__doc__


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
        ({"kind": "de", "variant": "rand"}, "optimizer.variant"),
    ],
)
def test_wrong_optimizer_sections_are_refused_by_key(options, message):
    with pytest.raises(InputError, match=message):
        build_optimizer(OptimizerConfig(**options), box(5), 0)


def test_a_gene_that_cannot_vary_is_left_alone_by_cma():
    domain = Domain([Gene("x"), Gene("y"), Gene("one", 3, 3, kind="int")])
    record = run(build("cma", domain), [], 30)
    assert {p.genome[2] for p, _ in record} == {0.5}
