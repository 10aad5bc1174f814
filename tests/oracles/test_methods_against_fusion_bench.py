"""The methods that fusion-bench 0.2.33 has, in float64, at 1e-10 (absolute), on awkward tensors.

Task vectors have full rank where singular vectors count: fusion-bench orthogonalises directions of
no weight, too, which are arbitrary.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import fusion_bench
import pytest
import torch
from calibrated_data import some_calibration
from fusion_bench import BaseModelPool
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.isotropic_merging import iso_utils
from fusion_bench.method.magmax import MagMaxAlgorithm
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from fusion_bench.method.tall_mask.task_arithmetic import generate_task_masks
from fusion_bench.method.task_arithmetic.task_arithmetic import task_arithmetic_merge
from fusion_bench.method.task_singular_vector.utils import TSVM_utils
from fusion_bench.method.ties_merging import ties_merging_utils
from fusion_bench.method.wudi.wudi import wudi_merging
from fusion_bench.utils import packages
from torch import nn

from evomerge.methods.consensus import consensus
from evomerge.methods.core.view import whole_view
from evomerge.methods.doge import correction, doge
from evomerge.methods.fisher import fisher
from evomerge.methods.iso_c import iso_c
from evomerge.methods.iso_cts import iso_cts
from evomerge.methods.linear import linear
from evomerge.methods.magmax import magmax
from evomerge.methods.opcm import opcm
from evomerge.methods.regmean import regmean
from evomerge.methods.task_arithmetic import task_arithmetic
from evomerge.methods.ties import ties
from evomerge.methods.tsvm import tsvm
from evomerge.methods.wudi import wudi

SHAPES = [(1,), (7,), (99,), (13, 11), (11, 13), (64, 48)]
TOLERANCE = {"rtol": 0, "atol": 1e-10}
LAMBDA = 0.7
KEY = "weight"
PACKAGE = "fusion_bench.method.opcm"


class Model(nn.Module):
    """A model of one tensor, a buffer: its task arithmetic fails on parameters."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight.clone())


class Projection(nn.Module):
    """A model of one linear layer."""

    def __init__(self, weight):
        super().__init__()
        self.inner = nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        self.inner.weight = nn.Parameter(weight.clone())


@pytest.fixture(params=SHAPES, ids=str)
def tensors(request):
    return drawn(request.param)


@pytest.fixture(params=["apart", "one is the base"])
def awkward(request, tensors):
    """With, and without, a task vector of zeros."""
    if request.param == "one is the base":
        tensors[2] = tensors[0].clone()
    return tensors


def drawn(shape, experts=3, scale=0.1):
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(experts)]
    return [base, *(base + scale * one for one in noise)]


def state_dicts(tensors):
    """Their task vectors."""
    return [{KEY: expert - tensors[0]} for expert in tensors[1:]]


def pool(tensors, kind=Model):
    names = ["_pretrained_", *(f"expert_{i}" for i in range(len(tensors) - 1))]
    return BaseModelPool({name: kind(t) for name, t in zip(names, tensors, strict=True)})


def test_linear_agrees_with_simple_average(awkward):
    expected = SimpleAverageAlgorithm().run(pool(awkward)).weight
    ours = linear(awkward[0], awkward[1:], weight=[1.0] * 3, base_weight=0.0, normalize=True)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_task_arithmetic_agrees(awkward):
    models = [Model(tensor) for tensor in awkward]
    expected = task_arithmetic_merge(models[0], models[1:], LAMBDA)
    ours = task_arithmetic(awkward[0], awkward[1:], weight=[1.0] * 3, lambda_=LAMBDA)
    torch.testing.assert_close(ours, expected.weight, **TOLERANCE)


@pytest.mark.parametrize("kept", [1, 40, 98])
def test_ties_agrees_on_the_whole_model(kept):
    """Theirs keeps one entry more than int(density·n)."""
    tensors = drawn((99,))
    taus = torch.stack([one[KEY] for one in state_dicts(tensors)])
    merged = ties_merging_utils.ties_merging(taus, (kept - 0.5) / 99, "dis-mean")
    ours = ties(
        tensors[0],
        tensors[1:],
        weight=[1.0] * 3,
        density=[(kept + 0.5) / 99] * 3,
        lambda_=LAMBDA,
    )
    torch.testing.assert_close(ours, tensors[0] + LAMBDA * merged, **TOLERANCE)


def test_magmax_agrees_and_of_tied_entries_takes_the_later(tensors):
    tensors[2].view(-1)[::2] = (2 * tensors[0] - tensors[1]).view(-1)[::2]  # τ₂ = −τ₁, to rounding
    tensors[3].view(-1)[::3] = tensors[2].view(-1)[::3]  # τ₃ = τ₂
    expected = MagMaxAlgorithm(scaling_factor=LAMBDA).run(pool(tensors)).weight
    torch.testing.assert_close(
        magmax(tensors[0], tensors[1:], lambda_=LAMBDA), expected, **TOLERANCE
    )


@pytest.mark.parametrize("agree", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.5])
def test_consensus_counts_their_tall_masks(awkward, agree, threshold):
    taus = state_dicts(awkward)
    total = {KEY: sum(one[KEY] for one in taus)}
    nothing = {KEY: torch.zeros_like(awkward[0])}
    masks = [generate_task_masks(total, one, nothing, threshold)[KEY] for one in taus]
    expected = awkward[0] + LAMBDA * total[KEY] * (sum(masks) >= agree)
    ours = consensus(
        awkward[0], awkward[1:], threshold=[threshold] * 3, agree=agree, lambda_=LAMBDA
    )
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_tsvm_agrees(tensors):
    merged = TSVM_utils.compute_and_sum_svd_mem_reduction(state_dicts(tensors), accelerator="cpu")
    ours = tsvm(tensors[0], tensors[1:], lambda_=LAMBDA)
    torch.testing.assert_close(ours, tensors[0] + LAMBDA * merged[KEY], **TOLERANCE)


def test_iso_c_agrees(awkward):
    merged = iso_utils.iso_c(state_dicts(awkward), accelerator="cpu")
    ours = iso_c(awkward[0], awkward[1:], lambda_=LAMBDA)
    torch.testing.assert_close(ours, awkward[0] + LAMBDA * merged[KEY], **TOLERANCE)


@pytest.mark.parametrize("common", [0.3, 0.8])
def test_iso_cts_agrees(tensors, common):
    merged = iso_utils.iso_cts(state_dicts(tensors), common, accelerator="cpu")
    ours = iso_cts(tensors[0], tensors[1:], common=common, lambda_=LAMBDA)
    torch.testing.assert_close(ours, tensors[0] + LAMBDA * merged[KEY], **TOLERANCE)


@pytest.fixture
def their_opcm(monkeypatch):
    """Its package imports CLIP classes that transformers 5 has no more; the module needs none, and
    as a Ray actor, too, the class cannot be made.
    """
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(fusion_bench.__file__).parent / "method" / "opcm")]
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    monkeypatch.setattr(packages, "is_ray_available", lambda: False)
    return import_module(f"{PACKAGE}.opcm_general").OPCM


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(13, 11), (11, 13), (24, 24)], ids=str)
def test_opcm_agrees(their_opcm, shape, alpha):
    tensors = drawn(shape)
    theirs = their_opcm(alpha=alpha, shuffle_order=False, save_on_every_step=False)
    expected = theirs.run(pool(tensors, Projection)).inner.weight
    torch.testing.assert_close(
        opcm(tensors[0], tensors[1:], alpha=alpha), expected.data, **TOLERANCE
    )


@pytest.mark.parametrize("shape", [(13, 11), (11, 13), (24, 18)], ids=str)
def test_the_descent_of_wudi_goes_where_ours_is(shape):
    """Theirs takes Adam steps of 1e-5 from Σ τ; after 1500 it is where the closed form is."""
    tensors = drawn(shape, scale=1e-3)
    merged = wudi_merging(state_dicts(tensors), accelerator="cpu", iter_num=1500)[KEY].detach()
    ours = wudi(tensors[0], tensors[1:]) - tensors[0]
    torch.testing.assert_close(ours, merged, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [(7,), (13, 11)], ids=str)
def test_fisher_agrees(shape, normalize):
    """Theirs adds one floor to every Fisher; ours is in units of each model's, so here there is
    none. Both measure a model's Fisher by its norm.
    """
    tensors = drawn(shape)
    data = some_calibration(["fisher"], shape, 3, dtype=torch.float64)["fisher"]
    weight = [0.2, 0.5, 1.0]
    expected = merging_with_fisher_weights(
        {KEY: tensors[1:]},
        [{KEY: one} for one in data],
        torch.tensor(weight, dtype=torch.float64),
        normalize_fisher_weight=normalize,
        minimal_fisher_weight=0.0,
    )
    ours = fisher(
        tensors[0],
        tensors[1:],
        calibrated={"fisher": data},
        weight=weight,
        normalize=normalize,
        floor=0.0,
    )
    torch.testing.assert_close(ours, expected[KEY], **TOLERANCE)


@pytest.mark.parametrize("reduce", [0.1, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(13, 11), (11, 13), (64, 48)], ids=str)
def test_regmean_agrees(shape, reduce):
    """Ours adds a billionth of the mean to the diagonal, which badly conditioned inputs feel."""
    tensors = drawn(shape)
    data = some_calibration(["gram"], shape, 3, dtype=torch.float64)["gram"]
    expected = merging_with_regmean_weights(
        {f"layer.{KEY}": tensors[1:]}, [{"layer": one} for one in data], reduce
    )
    ours = regmean(tensors[0], tensors[1:], calibrated={"gram": data}, reduce=reduce)
    torch.testing.assert_close(ours, expected[f"layer.{KEY}"], rtol=0, atol=1e-5)
    vector = [tensor[0] for tensor in tensors]
    mean = merging_with_regmean_weights({KEY: vector[1:]}, [{}], reduce)[KEY]
    torch.testing.assert_close(regmean(vector[0], vector[1:], reduce=reduce), mean, **TOLERANCE)


@pytest.mark.parametrize("eta", [0.07, 2.0])
@pytest.mark.parametrize("shape", [(24, 18), (18, 30)], ids=str)
def test_the_descent_of_doge_has_nowhere_to_go_from_our_correction(shape, eta):
    """Their loss there has no gradient left outside the shared subspace, and is below its start."""
    tensors = drawn(shape)
    taus = torch.stack([expert - tensors[0] for expert in tensors[1:]])
    factors = eta / torch.linalg.vector_norm(taus, dim=(1, 2))
    found = correction(whole_view(tensors[0], tensors[1:]))
    change = (found.at_zero / eta - found.lasting).view(shape).requires_grad_()
    change = (change.detach() * eta * (factors.sum() / eta) / factors.sum()).requires_grad_()
    loss = DOGE_TA_Algorithm.taskvector_loss(None, taus, change, factors)
    [gradient] = torch.autograd.grad(loss, change)
    rank = min(shape)
    sides = torch.cat(
        [torch.linalg.svd(tau, full_matrices=False).U[:, : rank // 3] for tau in taus], 1
    )
    shared = torch.linalg.svd(sides, full_matrices=False).U[:, : rank // 6]
    outside = gradient - shared @ (shared.mT @ gradient)
    nothing = torch.zeros_like(change, requires_grad=True)
    start = DOGE_TA_Algorithm.taskvector_loss(None, taus, nothing, factors)
    [begun] = torch.autograd.grad(start, nothing)
    assert loss < start
    assert torch.linalg.vector_norm(outside) < 1e-6 * torch.linalg.vector_norm(begun)
    # with everything kept, the merge is the sum of their adjusted vectors
    ours = doge(tensors[0], tensors[1:], density=[1.0] * 3, eta=eta)
    expected = tensors[0] + sum(f * (tau + change) for f, tau in zip(factors, taus, strict=True))
    torch.testing.assert_close(ours, expected.detach(), **TOLERANCE)
