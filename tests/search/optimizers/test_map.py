"""map: quadratics of every task, the front on them, and what is proposed from it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from domains import box, build, numbers, run
from scipy.special import expit

from evomerge.common.errors import InputError
from evomerge.judging import pareto
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge, Scores
from evomerge.search.spaces.genes import Condition, Domain, Gene
from evomerge.search.surrogates.quadratic import terms

CORNERS = np.array([[0.2, 0.3, 0.7, 0.5], [0.8, 0.6, 0.4, 0.5]])


"""Where each of two tasks is solved best; in between lies the front."""


DESIGN = 15


"""The coefficients of a quadratic of four genes."""


def chances(genome):
    """Each task's share of right answers: a quadratic inside a sigmoid."""
    return expit(2.0 - 6 * ((genome - CORNERS[:, : len(genome)]) ** 2).sum(axis=1))


def judge(objective, **options):
    names = ["one", "two"]
    return Judge(
        find_objective(objective, "test", options, names), names, np.ones(2), np.ones(2)
    ).against({"base": {name: np.full(4, 0.5) for name in names}})


PARETO = judge("pareto", of=["one", "two"])


def measured(genome, by=PARETO):
    """Scores whose means are the chances: every item is worth its share."""
    return by.scores({n: np.full(200, c) for n, c in zip(by.tasks, chances(genome), strict=True)})


def search(optimizer, asks, measure=measured):
    record = []
    for index in range(asks):
        proposal = optimizer.ask(index)
        record.append((proposal, measure(proposal.genome)))
        optimizer.tell(*record[-1])
    return record


def volume(record):
    found = np.array([chances(proposal.genome) for proposal, _ in record])
    return pareto.hypervolume(found[pareto.front(found)], (0.3, 0.3))


def true_volume():
    shares = np.linspace(0, 1, 2001)[:, None]
    between = CORNERS[0] + shares * (CORNERS[1] - CORNERS[0])
    return pareto.hypervolume(np.stack([chances(genome) for genome in between]), (0.3, 0.3))


def test_as_many_recipes_as_coefficients_are_evaluated_before_the_first_front():
    optimizer = build("map", box(4))
    record = search(optimizer, DESIGN)
    assert terms(4, interactions=True) == DESIGN
    genomes = np.stack([proposal.genome for proposal, _ in record])
    for gene in genomes.T:  # spread over each gene's range, as a Sobol sequence is
        assert np.histogram(gene, bins=4, range=(0, 1))[0].min() >= 3
    assert volume(record) < 0.8 * true_volume()
    assert optimizer.state().keys() == {"missed"}


def test_one_set_of_evaluations_gives_the_whole_front():
    """The members proposed after the design are as good as the true front."""
    record = search(build("map", box(4)), DESIGN + 20)
    assert volume(record[DESIGN:]) > 0.97 * true_volume()
    others = search(build("nsga3", box(4), population=15), DESIGN + 20)
    assert volume(others) < 0.9 * true_volume()
    assert len({proposal.genome.tobytes() for proposal, _ in record}) == DESIGN + 20


def test_with_one_goal_its_peak_is_proposed_and_what_may_be_as_good():
    by = judge("weakest_link")
    record = search(build("map", box(4), front=5), DESIGN + 10, lambda g: measured(g, by))
    best = max(chances(g).min() for g in np.linspace(*CORNERS, 1001))
    assert max(s.value for _, s in record[:DESIGN]) < best - 0.05
    assert max(s.value for _, s in record) > best - 0.01
    assert min(s.value for _, s in record[DESIGN:]) > best - 0.2


def test_goals_are_made_of_the_tasks_surfaces_and_not_fitted_themselves():
    """The weakest of two tasks is no quadratic; the surfaces say where it is largest, exactly."""
    by = judge("weakest_link")
    optimizer = build("map", box(4))
    search(optimizer, DESIGN, lambda genome: measured(genome, by))
    surfaces = optimizer._through(DESIGN)
    points = np.random.default_rng(0).random((100, 4))
    goals, broken = optimizer._goals(surfaces, surfaces.tasks)(points)
    assert goals[:, 0] == pytest.approx([chances(p).min() for p in points], abs=0.03)
    assert not broken.any()


def test_scores_without_tasks_have_a_surface_for_every_goal():
    def plain(genome):
        pair = tuple(-((genome - corner) ** 2).sum() for corner in CORNERS)
        return Scores(sum(pair), 0.0, 1, objectives=pair)

    record = search(build("map", box(4)), DESIGN + 20, plain)
    assert volume(record[DESIGN:]) > 0.97 * true_volume()


def test_the_front_keeps_constraints():
    def bounded(genome):
        return replace(measured(genome), violation=max(0.0, float(genome[0]) - 0.5))

    def broken(record):
        return np.mean([scores.violation > 0 for _, scores in record])

    record = search(build("map", box(4)), DESIGN + 40, bounded)
    assert broken(record[:DESIGN]) > 0.3
    assert broken(record[-20:]) < 0.3
    kept = [told for told in record if told[1].violation == 0]
    assert volume(kept) > volume(search(build("map", box(4)), DESIGN, bounded))


@pytest.mark.parametrize("options", [{}, {"bayesian": True}, {"interactions": False, "front": 8}])
def test_replaying_any_prefix_continues_exactly(options):
    def measure(genome):
        return measured(genome[:4])

    whole = run(build("map", numbers(), **options), [], 40, measure)
    for cut in (7, 14, 24, 31):
        resumed = build("map", numbers(), **options)
        for proposal, scores in whole[:cut]:
            resumed.tell(proposal, scores)
        again = run(resumed, whole[:cut], cut + 8, measure)
        assert [p.genome.tobytes() for p, _ in again] == [
            p.genome.tobytes() for p, _ in whole[: cut + 8]
        ]


def test_results_out_of_order_and_a_resume_among_them_change_nothing():
    live, record, waiting = build("map", box(4), front=6), [], deque()
    for index in range(40):
        waiting.append(live.ask(index))
        if len(waiting) == 3:
            waiting.rotate(index % 3)
            proposal = waiting.popleft()
            record.append((proposal, measured(proposal.genome)))
            live.tell(*record[-1])
    resumed = build("map", box(4), front=6)
    for told in record:
        resumed.tell(*told)
    assert resumed.ask(40).genome.tobytes() == live.ask(40).genome.tobytes()
    assert resumed.state() == live.state()


def test_the_bayesian_variant_samples_where_the_surfaces_are_off():
    """Quadratics fit everywhere but beyond 0.75 in the first gene, where scores jump about."""

    def rough(genome):
        wild = np.sin(60 * genome.sum()) if genome[0] > 0.75 else 0.0
        return Scores(-float(((genome - 0.5) ** 2).sum()) + wild, 0.0, 1)

    def share(seed, **options):
        record = search(build("map", box(3), seed, design=60, **options), 60, rough)
        return np.mean([proposal.genome[0] > 0.75 for proposal, _ in record[40:]])

    plain, off = ([share(s, **o) for s in range(3)] for o in ({}, {"bayesian": True}))
    assert np.mean(plain) < 0.35
    assert np.mean(off) > 0.6


@pytest.mark.parametrize(
    ("gene", "name"),
    [
        (Gene("method", kind="categorical", choices=("linear", "ties")), "method"),
        (Gene("density", when=(Condition("g0", (1,)),)), "density"),
    ],
)
def test_choices_are_refused_by_name(gene, name):
    with pytest.raises(InputError, match=rf"optimizer\.kind: map .*'{name}'.*'cma' or 'nsga3'"):
        build("map", Domain([*box(3).genes, gene]))


def test_a_design_too_small_for_the_coefficients_is_refused():
    with pytest.raises(InputError, match=r"optimizer\.design: 20 is less than the 28 coefficients"):
        build("map", box(6), design=20)
    assert build("map", box(6), design=13, interactions=False).check_budget(14) is None


def test_a_budget_that_ends_before_the_first_front_is_refused_with_the_way_out():
    optimizer = build("map", box(14))
    optimizer.check_budget(121)
    with pytest.raises(
        InputError, match=r"120 recipes for 14 genes.*of 120 trials.*false \(for 29\)"
    ):
        optimizer.check_budget(120)
    with pytest.raises(InputError, match=r"write budget\.trials: 49, .*model, or kind: cma"):
        build("map", box(14), interactions=False).check_budget(10)
