from __future__ import annotations

import sys

import numpy as np
import pytest
from domains import box, build, choices, mixed, numbers, run, score

from evomerge.common.errors import InputError
from evomerge.judging.scores import Scores
from evomerge.search.optimizers import optimizers


def test_samplers_are_listed_with_their_plain_options():
    from evomerge.common.plugins import options

    tpe = optimizers()["optuna:TPESampler"]
    assert {"n_startup_trials", "n_ei_candidates", "constant_liar"} <= set(options(tpe))
    assert not {"seed", "gamma", "warn_independent_sampling"} & set(options(tpe))
    assert {"optuna:GPSampler", "optuna:NSGAIISampler", "optuna:QMCSampler"} <= set(optimizers())


def test_listing_samplers_imports_no_torch():
    import subprocess

    code = (
        "import sys; from evomerge.search.optimizers import optimizers; optimizers();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_inactive_genes_are_not_sampled_and_the_others_are_as_recorded():
    domain = mixed()
    optimizer = build("optuna:TPESampler", domain)
    record = run(optimizer, [], 30, lambda genome: score(domain, genome))
    told = optimizer._study.get_trials(deepcopy=False)
    assert len(told) == 30
    for (proposal, scores), trial in zip(record, told, strict=True):
        params = domain.params(proposal.genome)
        assert set(trial.params) == set(params)
        assert trial.params["method"] == params["method"]
        assert trial.params["rank"] == params["rank"]
        assert trial.params["rate"] == proposal.genome[3]  # by its logarithm, as the genome has it
        assert (trial.value if scores else None) == (scores.value if scores else None)
    assert {len(trial.params) for trial in told} == {5, 6}


def test_tpe_beats_random():
    domain = mixed()

    def best(name):
        record = run(build(name, domain), [], 100, lambda genome: score(domain, genome))
        return max(s.value for _, s in record if s)

    assert best("optuna:TPESampler") > best("random")


def test_brute_force_visits_every_combination_once_and_goes_on():
    optimizer = build("optuna:BruteForceSampler", choices())
    record = run(optimizer, [], 48 + 3)
    assert len({p.genome.tobytes() for p, _ in record[:48]}) == 48


def test_several_objectives_are_all_maximised():
    optimizer = build("optuna:NSGAIISampler", box(2), population_size=8)
    for index in range(60):
        proposal = optimizer.ask(index)
        x, y = proposal.genome
        pair = (x - y, -float(x))
        optimizer.tell(proposal, None if index < 2 else Scores(x, 0, 1, objectives=pair))
    assert len(optimizer._study.directions) == 2
    assert len(optimizer._study.get_trials(deepcopy=False)) == 60
    late = np.stack([t.values for t in optimizer._study.best_trials])
    assert len(late) > 2


def test_constraints_reach_samplers_that_know_them():
    optimizer = build("optuna:TPESampler", box(2), n_startup_trials=10)
    record = []
    for index in range(60):
        proposal = optimizer.ask(index)
        x = proposal.genome[0]
        scores = Scores(float(x), 0, 1, violation=max(0.0, float(x) - 0.5))
        optimizer.tell(proposal, scores)
        record.append(scores)
    assert optimizer._study.best_trial.value <= 0.5
    # the best feasible value lies at the border, and that is where the later samples are
    assert np.mean([abs(s.value - 0.5) for s in record[30:]]) < 0.15


@pytest.mark.parametrize(
    ("name", "domain", "options", "message"),
    [
        ("TPESamplr", box, {}, "no optimizer is called .*did you mean 'optuna:TPESampler'"),
        ("TPESampler", box, {"n_start": 3}, r"optimizer\.n_start: .* of optuna:TPESampler"),
        ("TPESampler", box, {"n_startup_trials": "ten"}, r"optimizer\.n_startup_trials: "),
        ("NSGAIISampler", box, {"population_size": 1}, "NSGAIISampler refuses: .*population_size"),
        ("BruteForceSampler", mixed, {}, "BruteForceSampler refuses: .*infinite"),
        ("CmaEsSampler", mixed, {}, "CmaEsSampler cannot search categorical genes .*'method'"),
        ("QMCSampler", choices, {}, "QMCSampler cannot search categorical genes"),
    ],
)
def test_what_a_sampler_cannot_do_is_said_before_any_work(name, domain, options, message):
    with pytest.raises(InputError, match=message):
        build(f"optuna:{name}", domain(), **options)


def test_a_missing_package_is_named(monkeypatch):
    import cmaes  # noqa: F401  (present, so that hiding it is what is tested)
    from optuna.samplers import CmaEsSampler

    def without(self, *args, **options):
        raise ModuleNotFoundError("No module named 'cmaes'", name="cmaes")

    monkeypatch.setattr(CmaEsSampler, "sample_relative", without)
    with pytest.raises(InputError, match=r"CmaEsSampler needs a package .*pip install cmaes"):
        build("optuna:CmaEsSampler", numbers())


def test_a_sampler_of_one_objective_refuses_two():
    optimizer = build("optuna:CmaEsSampler", box())
    optimizer.check_goals(1)
    with pytest.raises(InputError, match="takes one objective, but the campaign has 2"):
        optimizer.check_goals(2)
    with pytest.raises(InputError, match="takes one objective, but the campaign has 2"):
        optimizer.tell(optimizer.ask(0), Scores(1.0, 0.0, 1, objectives=(1.0, 2.0)))
