"""Methods that use calibration data keep what their papers promise, and average without data."""

from __future__ import annotations

from dataclasses import replace

import method_formulas as reference
import numpy as np
import pytest
import torch
from calibrated_data import some_calibration

from evomerge.methods import methods
from evomerge.methods.core.aim import aim_factors
from evomerge.methods.core.calibrated import fisher_trims
from evomerge.methods.core.trim import trims
from evomerge.methods.core.view import whole_view

REGISTRY = methods()
CALIBRATED = [name for name, method in REGISTRY.items() if method.calibrated]
FISHER = ["fisher", "ota"]


def some_tensors(shape, experts=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    base, *noise = (
        torch.randn(shape, generator=generator, dtype=dtype) for _ in range(experts + 1)
    )
    return base, [base + 0.1 * one for one in noise]


def arguments_of(method, count, **values):
    each = {n: v for n, v in values.items() if method.parameters[n].per_expert}
    shared = {n: v for n, v in values.items() if n not in each}
    return method.arguments(shared, {f"e{i}": each for i in range(count)}, "test")


def merged(name, shape=(13, 11), data=None, **values):
    method = REGISTRY[name]
    count = method.experts[1] or 3
    base, experts = some_tensors(shape, count)
    own = some_calibration(method.calibrated, shape, count) if data is None else data
    return method(base, experts, calibrated=own, **arguments_of(method, count, **values))


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("shape", [(9,), (13, 11)], ids=str)
def test_data_change_the_merge_and_without_them_it_is_the_mean(name, shape):
    _, experts = some_tensors(shape, REGISTRY[name].experts[1] or 3)
    mean = sum(experts[1:], experts[0]) / len(experts)
    everything = {"density": 1.0} if name == "ota" else {}
    torch.testing.assert_close(merged(name, shape, {}, **everything), mean)
    if name not in ("regmean", "pleas") or len(shape) == 2:
        assert not torch.allclose(merged(name, shape, **everything), mean, atol=1e-3)


@pytest.mark.parametrize("name", CALIBRATED)
def test_no_change_of_the_experts_gives_the_base_whatever_the_data(name):
    method = REGISTRY[name]
    count = method.experts[1] or 3
    base, _ = some_tensors((13, 11))
    data = some_calibration(method.calibrated, (13, 11), count)
    same = [base.clone() for _ in range(count)]
    found = method(base, same, calibrated=data, **arguments_of(method, count))
    torch.testing.assert_close(found, base)


@pytest.mark.parametrize("name", [name for name in CALIBRATED if name != "rcp"])
def test_equal_experts_give_that_expert_whatever_the_data(name):
    method = REGISTRY[name]
    base, [expert, *_] = some_tensors((13, 11))
    data = some_calibration(method.calibrated, (13, 11), 3)
    given = arguments_of(method, 3, **({"density": 1.0} if name == "ota" else {}))
    torch.testing.assert_close(method(base, [expert] * 3, calibrated=data, **given), expert)


@pytest.mark.parametrize("name", CALIBRATED)
def test_lambda_zero_gives_the_base_whatever_the_data(name):
    base, _ = some_tensors((13, 11), REGISTRY[name].experts[1] or 3)
    assert torch.equal(merged(name, **{"lambda": 0.0}), base)


def test_the_average_of_weights_by_fisher_is_that_of_task_vectors():
    _, experts = some_tensors((13, 11))
    data = some_calibration(["fisher"], (13, 11), 3)["fisher"]
    absolute = reference.fisher(
        [expert.numpy() for expert in experts], [f.double().numpy() for f in data], [1.0] * 3, 1e-6
    )
    np.testing.assert_allclose(merged("fisher").numpy(), absolute, atol=1e-9)


def test_equal_fishers_give_the_mean_and_a_sure_expert_its_own_entries():
    _, experts = some_tensors((13, 11))
    data = some_calibration(["fisher"], (13, 11), 1)["fisher"]
    mean = sum(experts[1:], experts[0]) / 3
    torch.testing.assert_close(merged("fisher", data={"fisher": data * 3}), mean)
    sure = [torch.ones(13, 11), torch.full((13, 11), 1e-12), torch.full((13, 11), 1e-12)]
    alone = merged("fisher", data={"fisher": sure}, normalize=False, floor=0.0)
    torch.testing.assert_close(alone, experts[0])


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e12])
def test_the_unit_of_a_fisher_does_not_count(size):
    """Adam's second moments are of the order of 1e-20, beside which 1e-6 would be everything."""
    data = some_calibration(["fisher"], (13, 11), 3)
    expected = {name: merged(name, data=data) for name in FISHER}
    scaled = {"fisher": [one * size for one in data["fisher"]]}
    for name in FISHER:
        torch.testing.assert_close(merged(name, data=scaled), expected[name], rtol=0, atol=1e-6)


def test_entries_of_which_no_fisher_says_anything_are_averaged():
    _, experts = some_tensors((13, 11))
    data = some_calibration(["fisher"], (13, 11), 3)["fisher"]
    for one in data:
        one[4] = 0
    # each in units of its own model's, so that the floors are one
    found = merged("fisher", data={"fisher": data})
    torch.testing.assert_close(found[4], sum(expert[4] for expert in experts) / 3)


def residual(merge, experts, grams):
    """Σ ‖Xᵢ(W − Wᵢ)ᵀ‖²/T by the Gram matrices."""
    return sum(
        float(torch.trace((merge - expert) @ gram.double() @ (merge - expert).mT))
        for expert, gram in zip(experts, grams, strict=True)
    )


@pytest.mark.parametrize("shape", [(13, 11), (6, 17)], ids=str)
def test_nothing_leaves_the_experts_outputs_nearer_than_regmean(shape):
    _, experts = some_tensors(shape)
    grams = some_calibration(["gram"], shape, 3)["gram"]
    best = merged("regmean", shape, {"gram": grams}, reduce=1.0)
    least, generator = residual(best, experts, grams), torch.Generator().manual_seed(5)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(5):
            step = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            assert residual(best + step, experts, grams) > least
    for name in ("linear", "task_arithmetic", "ties", "wudi", "tsvm", "swudi"):
        assert residual(merged(name, shape), experts, grams) > least
    shrunk = [merged("regmean", shape, {"gram": grams}, reduce=r) for r in (0.0, 0.5, 0.9, 1.0)]
    sizes = [residual(one, experts, grams) for one in shrunk]
    assert sizes == sorted(sizes, reverse=True)


def test_inputs_that_no_expert_saw_keep_the_mean():
    _, experts = some_tensors((13, 11))
    grams = some_calibration(["gram"], (13, 11), 3)["gram"]
    for gram in grams:
        gram[2:4] = 0
        gram[:, 2:4] = 0
    mean = sum(experts[1:], experts[0]) / 3
    for reduce in (0.9, 1.0):
        found = merged("regmean", data={"gram": grams}, reduce=reduce)
        torch.testing.assert_close(found[:, 2:4], mean[:, 2:4])
        assert not torch.allclose(found[:, :2], mean[:, :2], atol=1e-3)


@pytest.mark.parametrize("reduce", [0.9, 1.0])
def test_few_tokens_do_no_harm(reduce):
    """Gram matrices of fewer tokens than inputs are singular."""
    base, experts = some_tensors((13, 11))
    inputs = torch.randn(3, 2, 11, generator=torch.Generator().manual_seed(0))
    data = {"gram": [one.mT @ one / 2 for one in inputs]}
    data["cross"] = [one.mT @ inputs.mean(0) / 2 for one in inputs]
    spread = max(float((expert - base).abs().max()) for expert in experts)
    for given in ({"name": "regmean", "reduce": reduce}, {"name": "pleas"}):
        found = merged(data=data, **given)
        assert float((found - base).abs().max()) < 20 * spread


@pytest.mark.parametrize("name", ["regmean", "pleas"])
def test_a_transposed_layer_is_merged_to_the_transpose(name):
    method = REGISTRY[name]
    base, experts = some_tensors((13, 11))
    data = some_calibration(method.calibrated, (13, 11), 3)
    plain = merged(name, data=data)
    view = replace(whole_view(base.T, [e.T for e in experts], data), transposed=True)
    measured = method.measured(view, arguments_of(method, 3))
    found = base.T + measured.update.values.view(11, 13)
    torch.testing.assert_close(found.T, plain)


def of_two_models(shape, tokens):
    """Experts, their inputs at the same tokens, float64 [tokens, in], and XᵢᵀX̄/T of each."""
    _, experts = some_tensors(shape, 2)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(2, tokens, shape[1], generator=generator, dtype=torch.float64)
    inputs += torch.randn(tokens, shape[1], generator=generator, dtype=torch.float64)
    return experts, inputs, [one.mT @ inputs.mean(0) / tokens for one in inputs]


@pytest.mark.parametrize("shape", [(13, 11), (6, 17)], ids=str)
def test_nothing_gives_mean_outputs_of_mean_inputs_better_than_pleas(shape):
    experts, inputs, crossed = of_two_models(shape, 80)
    target = sum(x @ w.mT for x, w in zip(inputs, experts, strict=True)) / 2

    def residual(merge):
        return float((inputs.mean(0) @ merge.mT - target).square().sum())

    def of(name, **values):
        method = REGISTRY[name]
        given = arguments_of(method, 2, **values)
        base, _ = some_tensors(shape, 2)
        data = {"cross": crossed} if method.calibrated else {}
        return method(base, experts, calibrated=data, **given)

    best, generator = of("pleas"), torch.Generator().manual_seed(5)
    expected = torch.linalg.lstsq(inputs.mean(0), target).solution.mT
    torch.testing.assert_close(best, expected, rtol=0, atol=1e-6)
    least = residual(best)
    for scale in (1e-3, 1e-2, 1e-1):
        step = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        assert residual(best + step) > least
    for name in ("linear", "task_arithmetic", "ties", "wudi", "tsvm", "swudi", "slerp"):
        assert residual(of(name)) > least
    sizes = [residual(of("pleas", ridge=ridge)) for ridge in (0.0, 0.3, 0.7, 1.0)]
    assert sizes == sorted(sizes)
    torch.testing.assert_close(of("pleas", ridge=1.0), sum(experts) / 2)


def test_reduce_counts_in_steps():
    parameter = REGISTRY["regmean"].parameters["reduce"]
    assert parameter.check(0.91, "reduce") == parameter.check(0.9, "reduce")
    assert torch.equal(merged("regmean", reduce=0.91), merged("regmean", reduce=0.9))


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_ota_at_a_constant_curvature_is_the_mean_of_what_a_trim_keeps(density):
    base, experts = some_tensors((13, 11))
    flat = {"fisher": [torch.full((13, 11), 0.25)] * 3}
    found = merged("ota", data=flat, density=density)
    masks = [
        trim.keep((expert - base).flatten()).view(13, 11).double()
        for trim, expert in zip(
            trims(whole_view(base, experts), density=[density] * 3), experts, strict=True
        )
    ]
    total = sum(m * (e - base) for m, e in zip(masks, experts, strict=True))
    expected = base + total / sum(masks).clamp(min=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(merged("ota", data={}, density=density), expected)


def test_a_trim_by_fisher_keeps_the_largest_saliencies():
    base, [expert, *_] = some_tensors((31, 17), dtype=torch.float32)
    data = some_calibration(["fisher"], (31, 17), 1)["fisher"]
    view = whole_view(base, [expert], {"fisher": data})
    [trim] = fisher_trims(view, [0.3])
    from evomerge.methods.core.slices import part_of

    tau = (expert - base).flatten()
    kept = part_of(trim, slice(0, tau.numel())).keep(tau)
    expected = reference.saliency_mask(tau.numpy(), data[0].flatten().numpy(), 0.3)
    assert kept.numpy().sum() == expected.sum()
    assert (kept.numpy() == expected).mean() > 0.995  # F τ² rounds otherwise than √F τ
    flat = whole_view(base, [expert], {"fisher": [torch.full((31, 17), 4.0)]})
    [same] = fisher_trims(flat, [0.3])
    [plain] = trims(whole_view(base, [expert]), density=[0.3])
    assert torch.equal(part_of(same, slice(0, tau.numel())).keep(tau), plain.keep(tau))


@pytest.mark.parametrize("name", [n for n in CALIBRATED if REGISTRY[n].elementwise])
def test_calibrated_methods_give_the_same_bytes_in_slices(name):
    from evomerge.methods.core.slices import part_of

    method = REGISTRY[name]
    count = method.experts[1] or 3
    base, experts = some_tensors((33, 9), count, torch.float32)
    data = some_calibration(method.calibrated, (33, 9), count)
    arguments = arguments_of(method, count)
    view = whole_view(base, experts, data)
    measured = method.measured(view, arguments)
    pieces = []
    for start in range(0, base.numel(), 64):
        part = slice(start, min(start + 64, base.numel()))
        slices = [t[part] for t in (view.base, *view.experts)]
        own = {**arguments, "measured": part_of(measured, part)}
        pieces.append(method.function(slices[0], slices[1:], **own))
    whole = method(base, experts, calibrated=data, **arguments)
    assert torch.equal(torch.cat(pieces).view(33, 9), whole)


def test_doge_corrects_nothing_that_the_experts_share():
    base, experts = some_tensors((24, 18))
    taus = np.stack([(expert - base).numpy() for expert in experts])
    everything = arguments_of(REGISTRY["doge"], 3, density=1.0, eta=0.5)
    plain = REGISTRY["balanced_task_arithmetic"](base, experts, weight=[1.0] * 3, length=0.5)
    change = (REGISTRY["doge"](base, experts, **everything) - plain).numpy()
    _, outside = reference.doge_operator(taus)
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(outside @ change, change, atol=1e-9)


def test_equally_long_task_vectors_are_added_as_task_arithmetic_does():
    base, experts = some_tensors((13, 11))
    taus = [(expert - base) / torch.linalg.vector_norm(expert - base) for expert in experts]
    equal = [base + tau for tau in taus]
    given = {"weight": [0.2, 0.5, -0.1]}
    torch.testing.assert_close(
        REGISTRY["balanced_task_arithmetic"](base, equal, **given),
        REGISTRY["task_arithmetic"](base, equal, **given),
    )
    longer = [base + tau * scale for tau, scale in zip(taus, (1.0, 5.0, 0.2), strict=True)]
    one = {**given, "length": 0.3}
    torch.testing.assert_close(
        REGISTRY["balanced_task_arithmetic"](base, longer, **one),
        REGISTRY["balanced_task_arithmetic"](base, equal, **one),
    )


def test_swudi_goes_from_its_start_to_wudi():
    base, experts = some_tensors((13, 11))
    taus = np.stack([(expert - base).numpy() for expert in experts])
    shares = (0.0, 0.3, 0.6, 0.85, 1.0)
    found = [merged("swudi", share=s, log_time=6.0, start="sum") - base for s in shares]
    losses = [reference.wudi_loss(one.numpy(), taus) for one in found]
    assert losses == sorted(losses, reverse=True)
    torch.testing.assert_close(found[0], torch.from_numpy(taus.sum(0)))
    torch.testing.assert_close(found[-1], merged("wudi") - base, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        merged("swudi", share=1.0, log_time=6.0, start="none"), merged("wudi"), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("quantile", [1.0, 0.8])
def test_aim_leaves_omega_where_the_activation_is_largest(quantile):
    activation = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    factors = aim_factors(activation, 0.4, quantile)
    assert torch.equal(aim_factors(activation, 1.0, quantile), torch.ones(5))
    assert float(factors[0]) == 1.0
    assert float(factors[-1]) == pytest.approx(0.4)
    largest = 8.0 if quantile == 1.0 else 4.0
    expected = 1 - (activation / largest).clamp(max=1) * 0.6
    torch.testing.assert_close(factors, expected)
