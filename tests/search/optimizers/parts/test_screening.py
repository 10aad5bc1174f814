"""Screening: what a surrogate prefers is evaluated, and the optimizer hears of nothing else."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from domains import DOMAINS, box, build, mixed, run, score
from optimizer_runs import DESCENTS, OWN, SMALL, fly

from evomerge.common.errors import InputError
from evomerge.config import OptimizerConfig
from evomerge.judging import pareto
from evomerge.judging.scores import Scores
from evomerge.search.optimizers import Known
from evomerge.search.spaces.genes import Domain
from evomerge.search.surrogates.gaussian_process import FEWEST

SCREENED = [name for name in OWN if name not in ("map", *DESCENTS)]


def screened(name, domain=None, seed=0, among=3, **options):
    return build(name, domain, seed, screen=among, **SMALL.get(name, {}), **options)


def smooth(genome):
    """A hill whose sides count unequally; nobody fails on it."""
    steep = np.linspace(0.2, 2.0, genome.size)
    return Scores(-float(steep @ (genome - 0.65) ** 2), 0.0, 1)


def climb(optimizer, asks, measure=smooth):
    record = []
    for index in range(asks):
        proposal = optimizer.ask(index)
        record.append((proposal, measure(proposal.genome)))
        optimizer.tell(*record[-1])
    return record


@pytest.mark.parametrize("kind", ["box", "mixed", "methods"])
@pytest.mark.parametrize("name", SCREENED)
def test_replaying_any_prefix_continues_exactly(name, kind):
    domain = DOMAINS[kind]()

    def measure(genome):
        return score(domain, genome)

    whole = run(screened(name, domain), [], 40, measure)
    for cut in (9, 21, 33):
        resumed = screened(name, domain)
        for proposal, scores in whole[:cut]:
            resumed.tell(proposal, scores)
        again = run(resumed, whole[:cut], cut + 6, measure)
        for (a, _), (b, _) in zip(whole, again, strict=False):
            assert (a.tells, a.parents) == (b.tells, b.parents)
            assert a.genome.tobytes() == b.genome.tobytes()


@pytest.mark.parametrize("name", SCREENED)
def test_a_resume_among_several_workers_answers_as_the_uninterrupted_search(name):
    domain = mixed()
    live = screened(name, domain)
    record, waiting, asked = fly(live, [], deque(), 0, 40, domain)
    resumed = screened(name, domain)
    for proposal, scores in record:
        resumed.tell(proposal, scores)
    assert len(waiting) < 3
    for index in (asked, asked + 5):
        assert resumed.ask(index).genome.tobytes() == live.ask(index).genome.tobytes()


@pytest.mark.parametrize("name", SCREENED)
def test_the_optimizer_is_told_what_was_evaluated_and_left_no_trace_of_the_rest(name):
    """It stands where it would if it had proposed these genomes itself."""
    optimizer, plain = screened(name, mixed()), build(name, mixed(), **SMALL.get(name, {}))
    for proposal, scores in run(optimizer, [], 40, lambda genome: score(mixed(), genome)):
        plain.tell(proposal, scores)
    assert optimizer.state() == plain.state()
    for nth in (0, 2):
        ours, theirs = optimizer._screened.answer(40, nth), plain.answer(40, nth)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1] == theirs[1]


@pytest.mark.parametrize("name", SCREENED)
def test_before_there_is_enough_to_go_by_nothing_is_screened(name):
    optimizer, plain = screened(name), build(name, **SMALL.get(name, {}))
    for index in range(FEWEST):
        proposal = optimizer.ask(index)
        assert proposal.genome.tobytes() == plain.ask(index).genome.tobytes()
        for one in (optimizer, plain):
            one.tell(proposal, smooth(proposal.genome))
    answers = [optimizer.ask(index).genome.tobytes() for index in range(FEWEST, 30)]
    assert answers != [plain.ask(index).genome.tobytes() for index in range(FEWEST, 30)]


def test_what_is_kept_is_what_the_optimizer_keeps():
    optimizer = screened("de", among=4)
    climb(optimizer, 12)
    assert optimizer.members()
    assert optimizer.members() == optimizer.state()["members"]


def test_what_is_evaluated_is_one_of_the_answers_and_mostly_a_better_one():
    """On a smooth hill, far more often the best of three than by chance."""
    optimizer = screened("random", box(5))
    best = 0
    for index in range(150):
        proposal = optimizer.ask(index)
        answers = [optimizer._screened.answer(index, nth)[0] for nth in range(3)]
        values = [smooth(genome).value for genome in answers]
        if index >= 30:
            best += smooth(proposal.genome).value == max(values)
        assert proposal.genome.tobytes() in {genome.tobytes() for genome in answers}
        optimizer.tell(proposal, smooth(proposal.genome))
    assert best / 120 > 0.7


@pytest.mark.parametrize("name", ["cma", "de"])
def test_on_a_smooth_landscape_the_same_budget_comes_nearer(name):
    def missed(among):
        runs = [climb(build(name, box(10), seed, screen=among), 80) for seed in range(4)]
        return np.mean([-max(scores.value for _, scores in record) for record in runs])

    assert missed(4) < 0.75 * missed(1)


def test_starts_and_other_openings_are_evaluated_as_they_are():
    starts = list(np.random.default_rng(1).random((FEWEST + 3, 6)))
    domain = Domain(box().genes, np.full(6, 0.5), starts)
    record = climb(screened("m2n2", domain), FEWEST + 4)
    assert [p.genome.tolist() for p, _ in record[:-1]] == [start.tolist() for start in starts]
    assert record[-1][0].genome.tolist() == [0.5] * 6


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_screened_front_dominates_more_at_equal_budgets(name):
    def measure(genome):
        pair = tuple(-float(np.mean((genome - corner) ** 2)) for corner in (0.25, 0.75))
        return Scores(sum(pair), 0.0, 1, objectives=pair)

    def volume(among, seed):
        record = climb(build(name, box(8), seed, population=12, screen=among), 80, measure)
        found = np.array([scores.objectives for _, scores in record])
        return pareto.hypervolume(found[pareto.front(found)], (-0.16, -0.16))

    plain, chosen = (np.mean([volume(among, s) for s in range(3)]) for among in (1, 4))
    assert chosen > 1.04 * plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "optuna:TPESampler"}, r"optimizer\.screen: TPESampler cannot be screened.*'cma'"),
        ({"kind": "map"}, r"optimizer\.screen: map proposes what its own surrogates prefer"),
    ],
)
def test_what_cannot_be_screened_is_refused_with_the_way_out(options, message):
    with pytest.raises(InputError, match=message):
        build(options["kind"], box(), screen=4)


def test_unless_it_is_asked_for_there_is_no_screening_and_no_trace_of_it_in_a_study():
    config = OptimizerConfig(kind="cma")
    assert config.model_dump() == {"kind": "cma"}
    assert type(build("cma")).__name__ == "CmaEs"
    with pytest.raises(ValueError, match="screen"):
        OptimizerConfig(kind="cma", screen=0)


def test_earlier_results_are_screened_by_from_the_first_proposal_on():
    optimizer, bare = screened("cma", among=8), build("cma")
    rng = np.random.default_rng(0)
    genomes = rng.random((40, optimizer.domain.dimension))
    optimizer.learn_earlier([Known(genome, smooth(genome)) for genome in genomes])
    optimizer.begin([])
    bare.begin([])
    found = [[one.ask(index).genome for index in range(20)] for one in (optimizer, bare)]
    preferred, plain = (np.mean([smooth(g).value for g in genomes]) for genomes in found)
    assert preferred > plain
