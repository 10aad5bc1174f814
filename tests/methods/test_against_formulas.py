"""Methods that no oracle has agree with their papers' formulas, written out in numpy."""

from __future__ import annotations

import method_formulas as reference
import numpy as np
import pytest
import torch
from calibrated_data import some_calibration

from evomerge.methods import methods

SHAPES = [(7,), (99,), (13, 11), (11, 13), (24, 18), (64, 48)]
REGISTRY = methods()
POWERS = {"half": 0.5, "one": 1.0}
CASES = [
    ("tsvm", {}),
    ("iso_c", {}),
    ("iso_cts", {"common": 0.8}),
    ("iso_cts", {"common": 0.3}),
    ("opcm", {"alpha": 0.5}),
    ("opcm", {"alpha": 0.9}),
    ("twin", {"weight": [0.3, 0.5, 0.1], "shared": 0.4, "rank": 0.25}),
    ("magmax", {}),
    ("consensus", {"threshold": [0.4, 0.6, 0.2], "agree": 2.0}),
    ("localize_and_stitch", {"density": [0.1, 0.3, 0.6]}),
    ("varm", {}),
    ("pcb", {"density": 0.2}),
    ("pcb", {"density": 0.6}),
    ("balanced_task_arithmetic", {"weight": [0.3, 0.5, 0.1], "length": 0.0}),
    ("balanced_task_arithmetic", {"weight": [1.0, 1.0, 1.0], "length": 0.07}),
]
MATRICES = [(13, 11), (11, 13), (24, 18)]
FILTERS = [
    ("swudi", {"share": 0.85, "log_time": 2.5, "start": "mean"}),
    ("swudi", {"share": 0.4, "log_time": 0.3, "start": "sum"}),
    ("swudi", {"share": 1.0, "log_time": 6.0, "start": "none"}),
    ("aswudi", {"rule": "participation", "start": "mean"}),
    ("aswudi", {"rule": "threshold", "start": "sum"}),
    ("doge", {"density": [0.3, 0.6, 1.0], "eta": 0.07}),
    ("doge", {"density": [0.3, 0.3, 0.3], "eta": 3.0}),
]
CALIBRATED = [
    ("fisher", "fisher", {"weight": [0.3, 0.5, 0.1], "floor": 1e-3}),
    ("fisher", "fisher", {"weight": [1.0, 0.0, 2.0], "floor": 0.0}),
    ("ota", "fisher", {"density": [0.4, 0.7, 1.0], "power": "half"}),
    ("ota", "fisher", {"density": [0.4, 0.4, 0.1], "power": "one"}),
    ("regmean", "gram", {"reduce": 0.9}),
    ("regmean", "gram", {"reduce": 0.0}),
    ("regmean", "gram", {"reduce": 1.0}),
    ("pleas", "cross", {"ridge": 0.0}),
    ("pleas", "cross", {"ridge": 0.35}),
    ("pleas", "cross", {"ridge": 1.0}),
]


def some_arrays(shape, experts=3):
    rng = np.random.default_rng(11)
    return rng.standard_normal(shape), 0.1 * rng.standard_normal((experts, *shape))


def merged(name, base, taus, calibrated=None, **parameters):
    tensors = [torch.from_numpy(base + tau) for tau in taus]
    method, own = REGISTRY[name], {}
    if "weight" in method.parameters and "weight" not in parameters:
        own["weight"] = [method.parameters["weight"].default] * len(taus)
    given = {**own, **parameters}
    return method(torch.from_numpy(base), tensors, calibrated=calibrated, **given).numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_the_method_agrees_with_its_formula(name, parameters, shape):
    base, taus = some_arrays(shape)
    expected = base + 0.7 * getattr(reference, name)(taus, **parameters)
    result = merged(name, base, taus, **parameters, lambda_=0.7)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize(("name", "parameters"), FILTERS)
def test_the_method_agrees_with_its_formula_on_matrices(name, parameters, shape):
    base, taus = some_arrays(shape)
    expected = base + 0.7 * getattr(reference, name)(taus, **parameters)
    result = merged(name, base, taus, **parameters, lambda_=0.7)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize(("name", "kind", "parameters"), CALIBRATED)
def test_the_method_agrees_with_its_formula_of_calibration_data(name, kind, parameters, shape):
    base, taus = some_arrays(shape)
    data = some_calibration([kind], shape, 3, dtype=torch.float64)
    given = {**parameters, **({"power": POWERS[p]} if (p := parameters.get("power")) else {})}
    formula = getattr(reference, name)
    expected = base + 0.7 * formula(taus, [one.numpy() for one in data[kind]], **given)
    result = merged(name, base, taus, data, **parameters, lambda_=0.7)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(7,), (13, 11)], ids=str)
@pytest.mark.parametrize("log_penalty", [0.0, 2.0])
def test_rcp_agrees_with_its_formula(shape, log_penalty):
    base, taus = some_arrays(shape, 2)
    data = some_calibration(["gtheta"], shape, 2, dtype=torch.float64)
    samples = [one.numpy() for one in data["gtheta"]]
    expected = base + 0.7 * reference.rcp(taus, samples, 10**log_penalty, 0.5)
    given = {"log_penalty": log_penalty, "scale": 0.5, "lambda_": 0.7}
    np.testing.assert_allclose(merged("rcp", base, taus, data, **given), expected, atol=1e-9)
    turned = merged("rcp", base, taus[::-1], {"gtheta": data["gtheta"][::-1]}, **given)
    assert not np.allclose(turned, expected)
    swapped = {"gtheta": data["gtheta"][::-1]}
    back = merged("rcp", base, taus[::-1], swapped, reasoning="second", **given)
    np.testing.assert_allclose(back, expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (99,), (13, 12), (24, 18), (64, 48)], ids=str)
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.4])
def test_widen_agrees_with_its_formula(shape, ratio):
    base, taus = some_arrays(shape)
    expected = base + reference.widen(base, taus, ratio, 0.9)
    result = merged("widen", base, taus, ratio=ratio, calibration=0.9)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(13, 11), (11, 13), (24, 18)], ids=str)
def test_nothing_near_disturbs_the_experts_less_than_wudis_merge(shape):
    base, taus = some_arrays(shape)
    best = merged("wudi", base, taus) - base
    least, rng = reference.wudi_loss(best, taus), np.random.default_rng(0)
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(5):
            step = scale * rng.standard_normal(shape)
            assert reference.wudi_loss(best + step, taus) > least


def test_wudi_of_vectors_is_their_mean():
    base, taus = some_arrays((9,))
    np.testing.assert_allclose(merged("wudi", base, taus), base + taus.mean(0), atol=1e-12)


def low_rank(shape, rank, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))


@pytest.mark.parametrize("name", ["tsvm", "iso_c", "iso_cts", "wudi", "opcm"])
def test_adapters_move_nothing_outside_their_span(name):
    """Singular vectors of weight zero are arbitrary; none of them may enter the merge."""
    shape = (24, 18)
    base, _ = some_arrays(shape)
    taus = np.stack([low_rank(shape, 2, seed) for seed in range(3)])
    update = merged(name, base, taus) - base
    spanned = np.linalg.svd(np.hstack(list(taus)))[0][:, :6]
    np.testing.assert_allclose(update - spanned @ spanned.T @ update, 0, atol=1e-8)
    assert np.linalg.matrix_rank(update, tol=1e-8) <= 6


def test_iso_c_keeps_the_sum_of_singular_values_and_levels_them():
    base, taus = some_arrays((24, 18))
    update = merged("iso_c", base, taus) - base
    values = np.linalg.svd(update, compute_uv=False)
    assert np.ptp(values) < 1e-10
    total = np.linalg.svd(taus.sum(0), compute_uv=False).sum()
    np.testing.assert_allclose(values.sum(), total)


def test_stacked_matrices_are_merged_one_by_one():
    """Experts of a mixture, or convolutions: leading dimensions count matrices."""
    base, taus = some_arrays((3, 12, 10))
    for name in ("tsvm", "iso_c", "iso_cts", "wudi", "twin"):
        whole = merged(name, base, taus, **({"weight": [0.3] * 3} if name == "twin" else {}))
        for i in range(3):
            weights = {"weight": [0.3] * 3} if name == "twin" else {}
            alone = merged(name, base[i], taus[:, i], **weights)
            np.testing.assert_allclose(whole[i], alone, atol=1e-10)


def test_more_experts_than_directions_are_merged():
    base, taus = some_arrays((3, 2), experts=5)
    for name in ("tsvm", "iso_cts", "opcm"):
        assert np.isfinite(merged(name, base, taus)).all()


HOMOGENEOUS = sorted(
    REGISTRY.keys() - {"arcee_fusion", "doge", "nearswap", "pcb", "ram", "ramplus_tl"}
)
"""All but those with a threshold, a length, or a function, of the weights' unit."""


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_the_unit_of_the_weights_does_not_count(name):
    method = REGISTRY[name]
    count = method.experts[1] or 3
    base, taus = some_arrays((24, 18), experts=count)
    arguments = method.arguments({}, {f"e{i}": {} for i in range(count)}, "test")
    once = merged(name, base, taus, **arguments)
    twice = merged(name, 64 * base, 64 * taus, **arguments)
    np.testing.assert_allclose(twice, 64 * once, rtol=1e-6, atol=1e-6)
