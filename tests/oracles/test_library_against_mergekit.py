"""The methods that mergekit 0.1.5 has, in float64, on awkward tensors, at 1e-10 (absolute).

Where mergekit draws random masks, its draws are replaced by ours. Deviations are by choice and have
a test of their own.
"""

from __future__ import annotations

import pytest
import torch
from mergekit import sparsify
from mergekit.merge_methods import merge_tensors

from evomerge.methods.arcee_fusion import arcee_fusion
from evomerge.methods.breadcrumbs import breadcrumbs
from evomerge.methods.breadcrumbs_ties import breadcrumbs_ties
from evomerge.methods.core.masks import at
from evomerge.methods.dare_linear import dare_linear
from evomerge.methods.dare_ties import dare_ties
from evomerge.methods.della import della
from evomerge.methods.della_linear import della_linear
from evomerge.methods.karcher import karcher
from evomerge.methods.model_stock import model_stock
from evomerge.methods.multislerp import multislerp
from evomerge.methods.nearswap import nearswap
from evomerge.methods.nuslerp import nuslerp
from evomerge.methods.ram import ram
from evomerge.methods.ramplus_tl import ramplus_tl
from evomerge.methods.sce import sce

SHAPES = [(1,), (7,), (99,), (13, 11), (64, 48), (3, 5, 7)]
TOLERANCE = {"rtol": 0, "atol": 1e-10}
WEIGHTS = [0.7, 1.3, -0.4]
DENSITIES = [0.3, 0.55, 0.9]
NAMES = ["x", "y", "z"]


@pytest.fixture(params=SHAPES, ids=str)
def tensors(request):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(request.param, generator=generator, dtype=torch.float64) for _ in range(4)]


@pytest.fixture(params=["apart", "one is the base"])
def awkward(request, tensors):
    """With, and without, a task vector of zeros."""
    if request.param == "one is the base":
        tensors[2] = tensors[0].clone()
    return tensors


def oracle(tensors, method, **parameters):
    return merge_tensors(tensors, method, parameters=parameters, base_index=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("ours", [breadcrumbs, breadcrumbs_ties], ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("density", "gamma"),
    [(DENSITIES, [0.01, 0.1, 0.3]), ([1.0, 0.0, 0.5], [0.2] * 3), ([0.01] * 3, [0.0, 0.5, 1.0])],
)
def test_breadcrumbs_agrees_with_mergekit(tensors, ours, normalize, density, gamma):
    given = {"weight": WEIGHTS, "density": density, "gamma": gamma, "normalize": normalize}
    expected = oracle(tensors, ours.name, **given, **{"lambda": 0.8})
    result = ours(tensors[0], tensors[1:], **given, lambda_=0.8)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.fixture
def our_draws(monkeypatch):
    """mergekit's Bernoulli draws: whether our counter-based bits lie below its probability."""

    def use(place, kept):
        experts = iter(kept)

        def bernoulli(probability):
            bound = (probability.float() * 2.0**32 - 2.0**31).clamp(max=2.0**31 - 128)
            keep = place.keep(next(experts), probability, bound.to(torch.int32))
            return keep.to(probability.dtype)

        monkeypatch.setattr(sparsify.torch, "bernoulli", bernoulli)

    return use


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("ours", [della, della_linear], ids=lambda m: m.name)
def test_della_agrees_with_mergekit_on_the_same_mask(tensors, ours, normalize, rescale, our_draws):
    if tensors[0].numel() == 1:
        pytest.skip("mergekit's ranks of a single entry are 0/0")
    if tensors[0].dim() == 3:
        pytest.skip("mergekit ranks along the second dimension, ours along the last")
    place = at(3, "a.weight", NAMES)
    given = {"weight": WEIGHTS, "density": [0.3, 0.55, 1.0], "epsilon": [0.15, 0.2, 0.1]}
    our_draws(place, [0, 1])
    expected = oracle(
        tensors, ours.name, **given, normalize=normalize, rescale=rescale, **{"lambda": 0.8}
    )
    result = ours(
        tensors[0],
        tensors[1:],
        **given,
        normalize=normalize,
        rescale="l1" if rescale else "none",
        lambda_=0.8,
        at=place,
    )
    # mergekit sparsifies in float32 on CPU
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ours", [dare_linear, dare_ties], ids=lambda m: m.name)
def test_dare_rescaled_to_the_l1_norm_agrees_with_mergekit_on_the_same_mask(
    tensors, ours, our_draws
):
    place = at(3, "a.weight", NAMES)
    given = {"weight": WEIGHTS, "density": DENSITIES, "normalize": ours is dare_ties}
    our_draws(place, [0, 1, 2])
    expected = oracle(tensors, ours.name, **given, rescale=True, **{"lambda": 0.8})
    result = ours(tensors[0], tensors[1:], **given, rescale="l1", lambda_=0.8, at=place)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("select_topk", [0.0, 0.1, 0.5, 1.0])
def test_sce_agrees_with_mergekit(awkward, select_topk):
    expected = oracle(awkward, "sce", select_topk=select_topk)
    result = sce(awkward[0], awkward[1:], select_topk=select_topk)
    torch.testing.assert_close(result, expected, **TOLERANCE)


def test_sce_weighs_by_energy_where_task_vectors_are_small_too():
    """mergekit takes equal weights below a mean square of 1e-6; the paper has no such bound."""
    base, one, two = torch.zeros(3, 50), torch.full((3, 50), 1e-4), torch.full((3, 50), 2e-4)
    result = sce(base, [one, two], select_topk=1.0)
    torch.testing.assert_close(result, (one + 4 * two) / 5)
    assert not torch.allclose(result, oracle([base, one, two], "sce", select_topk=1.0), rtol=0.1)


@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_model_stock_agrees_with_mergekit(awkward, filter_wise, count):
    given = awkward[: count + 1]
    expected = oracle(given, "model_stock", filter_wise=filter_wise)
    result = model_stock(given[0], given[1:], filter_wise=filter_wise)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("task_vectors", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_multislerp_agrees_with_mergekit(tensors, task_vectors, normalize, count):
    if tensors[0].numel() == 1 and count == 2:
        pytest.skip("on a line the directions cancel or are one")
    weight = WEIGHTS[:count]
    expected = merge_tensors(
        tensors[: count + 1] if task_vectors else tensors[1 : count + 1],
        "multislerp",
        parameters={"weight": weight, "normalize_weights": normalize},
        base_index=0 if task_vectors else None,
    )
    result = multislerp(
        tensors[0],
        tensors[1 : count + 1],
        weight=[1.0] if count == 1 else weight,
        normalize=normalize,
        task_vectors=task_vectors,
    )
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("task_vectors", [True, False])
@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
@pytest.mark.parametrize("weight", [[0.7, 1.3], [1.0, 0.0], [1.0, -1.0]])
def test_nuslerp_agrees_with_mergekit(tensors, task_vectors, along, weight):
    if tensors[0].dim() == 3 and along == "columns":
        pytest.skip("mergekit swaps the first dimension with the last, which is another column")
    expected = merge_tensors(
        tensors[:3] if task_vectors else tensors[1:3],
        "nuslerp",
        parameters={
            "weight": weight,
            "nuslerp_flatten": along == "tensor",
            "nuslerp_row_wise": along == "columns",
        },
        base_index=0 if task_vectors else None,
    )
    result = nuslerp(
        tensors[0], tensors[1:3], weight=weight, along=along, task_vectors=task_vectors
    )
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_karcher_agrees_with_mergekit(tensors, count):
    expected = merge_tensors(tensors[1 : count + 1], "karcher", parameters={})
    result = karcher(tensors[0], tensors[1 : count + 1], weight=[1.0] * count)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("t", [0.0, 1e-4, 0.3])
def test_nearswap_agrees_with_mergekit(tensors, t):
    expected = oracle(tensors[:2], "nearswap", t=t)
    result = nearswap(tensors[0], [tensors[1]], t=t)
    torch.testing.assert_close(result, expected, **TOLERANCE)


def test_arcee_fusion_agrees_with_mergekit(tensors):
    expected = oracle(tensors[:2], "arcee_fusion")
    torch.testing.assert_close(arcee_fusion(tensors[0], [tensors[1]]), expected, **TOLERANCE)


def partly_changed(tensors):
    """Experts that changed some entries each, some of them the same."""
    base, *experts = tensors
    generator = torch.Generator().manual_seed(2)
    masks = [torch.rand(base.shape, generator=generator) < 0.4 for _ in experts]
    return [base, *(torch.where(m, e, base) for m, e in zip(masks, experts, strict=True))]


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_ram_agrees_with_mergekit(tensors, epsilon):
    given = partly_changed(tensors)
    expected = oracle(given, "ram", epsilon=epsilon)
    torch.testing.assert_close(ram(given[0], given[1:], epsilon=epsilon), expected, **TOLERANCE)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_ramplus_agrees_with_mergekit(tensors, epsilon):
    given = partly_changed(tensors)
    parameters = {"epsilon": epsilon, "r": 0.6, "alpha": 0.9}
    expected = oracle(given, "ramplus_tl", **parameters)
    # mergekit's ratios of counts are float32
    torch.testing.assert_close(
        ramplus_tl(given[0], given[1:], **parameters), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("ours", [sce, model_stock, ram], ids=lambda m: m.name)
def test_bf16_sources_widened_agree_with_mergekit_in_float32(tensors, ours):
    narrow = [t.bfloat16() for t in tensors]
    parameters = {"select_topk": 1.0} if ours is sce else {}
    expected = merge_tensors(
        narrow,
        ours.name,
        parameters=parameters,
        base_index=0,
        dtype=torch.float32,
        out_dtype=torch.float32,
    )
    wide = [t.float() for t in narrow]
    result = ours(wide[0], wide[1:], **parameters)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
