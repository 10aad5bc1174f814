"""Estimators on models of known abilities: nearer than the plain mean, and honest about it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from evomerge.judging.estimators.calibration import (
    RISK,
    TOLERATED,
    Counted,
    calibrate,
    switched_off_after,
)
from evomerge.judging.estimators.irt import fit
from evomerge.judging.estimators.mean import mean
from evomerge.judging.estimators.responses import estimator_of
from evomerge.judging.rung_items import fix_rungs

SIZE, RUNG = 150, 24
TASKS = ("plain", "wordy")
BOUND = 1.645


class World:
    """Items of two tasks, and models whose abilities differ by task."""

    def __init__(self, seed=0, models=40):
        self.rng = np.random.default_rng(seed)
        self.alpha = {t: np.exp(self.rng.normal(0.3, 0.3, SIZE)) for t in TASKS}
        self.beta = {t: self.rng.normal(0.4, 1.5, SIZE) for t in TASKS}
        self.full = [self.model() for _ in range(models)]
        sizes, weights = dict.fromkeys(TASKS, SIZE), dict.fromkeys(TASKS, 1.0)
        self.places = fix_rungs([RUNG, "all"], sizes, weights, self.full[:6]).places(0)

    def model(self):
        ability = self.rng.normal(0.5, 0.8)
        return {
            task: (
                self.rng.random(SIZE) < 1 / (1 + np.exp(self.beta[task] - self.alpha[task] * theta))
            ).astype(float)
            for task, theta in zip(TASKS, ability + self.rng.normal(0, 0.3, 2), strict=True)
        }

    def partial(self, items):
        found = {task: np.full(SIZE, np.nan) for task in TASKS}
        for task, places in self.places.items():
            found[task][places] = items[task][places]
        return found


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def errors():
    """Estimator → (its errors, its standard errors) on new models of three worlds."""
    found = {"mean": [], "mp_irt": [], "gmp_irt": []}
    for seed in range(3):
        world = World(seed)
        models = [world.model() for _ in range(120)]
        for name, pairs in found.items():
            estimator = estimator_of(name, world.full, [world.places])
            for items in models:
                estimates = estimator(world.partial(items))
                off = np.mean([estimates[t][0] - items[t].mean() for t in TASKS])
                se = np.sqrt(sum(estimates[t][1] ** 2 for t in TASKS)) / len(TASKS)
                pairs.append((off, se))
    return {name: np.array(pairs).T for name, pairs in found.items()}


def test_item_response_theory_is_nearer_than_the_mean(errors):
    error = {name: np.abs(off).mean() for name, (off, _) in errors.items()}
    assert error["mp_irt"] < 0.8 * error["mean"]
    assert error["gmp_irt"] < 0.9 * error["mean"]


@pytest.mark.parametrize("name", ["mean", "mp_irt", "gmp_irt"])
def test_ninety_percent_intervals_hold_about_ninety_percent(errors, name):
    off, se = errors[name]
    assert 0.85 <= np.mean(np.abs(off) < BOUND * se) <= 0.97


def test_what_is_measured_whole_is_not_estimated(world):
    items = world.model()
    for name in ("mean", "mp_irt", "gmp_irt"):
        for task, (value, se) in estimator_of(name, world.full, [world.places])(items).items():
            assert value == pytest.approx(items[task].mean())
            assert se == pytest.approx(0, abs=1e-12)


def test_equal_responses_give_equal_estimates(world):
    items = world.partial(world.model())
    first, second = (estimator_of("gmp_irt", world.full[:12], [world.places]) for _ in range(2))
    assert first(items) == second(items)


def test_the_fit_finds_who_is_able_and_what_is_hard(world):
    model = fit([np.concatenate([m[t] for t in TASKS]) for m in world.full], 1)
    scores = [np.mean([m[t].mean() for t in TASKS]) for m in world.full]
    assert np.corrcoef(model.theta[:, 0], scores)[0, 1] > 0.95
    assert np.corrcoef(model.beta, np.concatenate([world.beta[t] for t in TASKS]))[0, 1] > 0.8


def test_an_ability_is_the_mode_of_its_posterior(world):
    """The gradient of the log posterior, taken numerically, is nothing there."""
    model = fit([m["plain"] for m in world.full], 2)
    answers = np.where(np.arange(SIZE) < 30, world.full[0]["plain"], np.nan)
    theta, _ = model.ability(answers)
    center, precision = model._prior

    def log_posterior(at):
        p, seen = model.chances(at), np.isfinite(answers)
        y = answers[seen]
        prior = 0.5 * (at - center) @ precision @ (at - center)
        return np.sum(y * np.log(p[seen]) + (1 - y) * np.log(1 - p[seen])) - prior

    for direction in np.eye(2):
        step = 1e-4 * direction
        assert abs(log_posterior(theta + step) - log_posterior(theta - step)) / 2e-4 < 1e-4


def test_metrics_without_bounds_and_too_few_models_are_refused(world):
    perplexities = [{"plain": 3 * np.ones(SIZE)} for _ in range(5)]
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimator_of("mp_irt", perplexities, [])
    beside = [{**m, "tokens": 3 * np.ones(SIZE)} for m in world.full]
    partial = {**world.partial(world.full[0]), "tokens": np.where(np.arange(SIZE) < 9, 4, np.nan)}
    rung = {**world.places, "tokens": np.arange(9)}
    assert estimator_of("mp_irt", beside, [rung])(partial)["tokens"][0] == 4
    with pytest.raises(ValueError, match="needs 3 models"):
        estimator_of("mp_irt", world.full[:2], [])


def test_the_mean_counts_only_what_is_not_known_yet():
    half = np.array([1.0, 0.0, 1.0, 0.0, np.nan, np.nan, np.nan, np.nan])
    ((value, se),) = mean({"t": half}).values()
    assert value == 0.5
    assert se == pytest.approx(np.sqrt(1 / 3 * (1 / 4 - 1 / 8)))


def test_an_estimator_that_is_off_is_found_out_and_a_good_one_is_kept():
    rng = np.random.default_rng(5)
    good = [(float(e), 0.05, 0.5) for e in 0.5 + rng.normal(0, 0.05, 200)]
    assert switched_off_after(good) is None
    assert 0.85 <= calibrate(good).covered / 200 <= 0.95
    bad = [(float(e), 0.02, 0.5) for e in 0.5 + rng.normal(0, 0.08, 200)]
    assert switched_off_after(bad) <= 15


def test_coverage_is_judged_by_the_binomial_tail_however_many_were_checked():
    for of in (1, 2, 7, 40, 300, 1100, 20_000):
        for covered in {0, of // 2, *range(max(0, int(0.7 * of) - 5), min(of, int(0.78 * of) + 5))}:
            tail = scipy.stats.binom.cdf(covered, of, TOLERATED)
            assert Counted(of, covered).off == (tail < RISK), (of, covered, tail)
    assert not Counted().off
