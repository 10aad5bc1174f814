"""Every method agrees with mergekit 0.1.5 (or PEFT's formula) in float64, on awkward tensors."""

from __future__ import annotations

import pytest
import torch
from mergekit.merge_methods import merge_tensors
from peft.utils import merge_utils

from evomerge.methods.core.masks import at, limits
from evomerge.methods.dare_linear import dare_linear
from evomerge.methods.dare_ties import dare_ties
from evomerge.methods.linear import linear
from evomerge.methods.passthrough import passthrough
from evomerge.methods.slerp import slerp
from evomerge.methods.task_arithmetic import task_arithmetic
from evomerge.methods.ties import ties

SHAPES = [(1,), (7,), (99,), (13, 11), (64, 48), (3, 5, 7)]
TOLERANCE = {"rtol": 0, "atol": 1e-10}
WEIGHTS = [0.7, 1.3, -0.4]
DENSITIES = [0.3, 0.55, 0.9]


@pytest.fixture(params=SHAPES, ids=str)
def tensors(request):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(request.param, generator=generator, dtype=torch.float64) for _ in range(4)]


def oracle(tensors, method, **parameters):
    return merge_tensors(tensors, method, parameters=parameters, base_index=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_agrees_with_mergekit(tensors, normalize):
    expected = merge_tensors(
        tensors, "linear", parameters={"weight": [0.2, *WEIGHTS], "normalize": normalize}
    )
    ours = linear(tensors[0], tensors[1:], weight=WEIGHTS, base_weight=0.2, normalize=normalize)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lambda_", [0.0, 0.4, 1.0])
def test_task_arithmetic_agrees_with_mergekit(tensors, normalize, lambda_):
    expected = oracle(
        tensors, "task_arithmetic", weight=WEIGHTS, normalize=normalize, **{"lambda": lambda_}
    )
    ours = task_arithmetic(
        tensors[0], tensors[1:], weight=WEIGHTS, normalize=normalize, lambda_=lambda_
    )
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("densities", [DENSITIES, [1.0, 0.0, 0.5], [0.01, 0.01, 0.01]])
def test_ties_agrees_with_mergekit(tensors, normalize, densities):
    expected = oracle(
        tensors,
        "ties",
        weight=WEIGHTS,
        density=densities,
        normalize=normalize,
        **{"lambda": 0.8},
    )
    ours = ties(
        tensors[0],
        tensors[1:],
        weight=WEIGHTS,
        density=densities,
        normalize=normalize,
        lambda_=0.8,
    )
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_ties_with_zero_task_vectors_agrees_with_mergekit(tensors):
    tensors[2] = tensors[0].clone()
    expected = oracle(tensors, "ties", weight=WEIGHTS, density=DENSITIES, normalize=True)
    ours = ties(tensors[0], tensors[1:], weight=WEIGHTS, density=DENSITIES)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_agrees_with_mergekit(tensors, t):
    expected = oracle(tensors[:2], "slerp", t=t)
    torch.testing.assert_close(slerp(tensors[0], [tensors[1]], t=t), expected, **TOLERANCE)


def test_slerp_of_nearly_parallel_tensors_is_linear_as_mergekits(tensors):
    near = tensors[0] * (1 + 1e-4)
    expected = oracle([tensors[0], near], "slerp", t=0.25)
    torch.testing.assert_close(slerp(tensors[0], [near], t=0.25), expected, **TOLERANCE)


def test_passthrough_is_the_expert_times_scale(tensors):
    expected = merge_tensors([tensors[1]], "passthrough", parameters={"scale": [0.5]})
    ours = passthrough(tensors[0], [tensors[1]], scale=0.5)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.fixture
def peft_with_our_masks(monkeypatch):
    """PEFT's DARE with its Bernoulli draws replaced by our counter-based masks, in order."""

    def use(place, taus, densities):
        masks = iter(
            place.keep(i, tau, limit).to(tau.dtype)
            for i, (tau, limit) in enumerate(zip(taus, limits(densities), strict=True))
        )
        pruned = lambda tensor, density, rescale: tensor * next(masks) / density  # noqa: E731
        monkeypatch.setattr(merge_utils, "random_pruning", pruned)

    return use


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_dare_linear_agrees_with_peft_on_the_same_mask(tensors, density, peft_with_our_masks):
    place = at(3, "a.weight", ["x", "y", "z"])
    taus = [e - tensors[0] for e in tensors[1:]]
    peft_with_our_masks(place, taus, [density] * 3)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = tensors[0] + merge_utils.dare_linear(taus, weights, density)
    ours = dare_linear(tensors[0], tensors[1:], weight=WEIGHTS, density=[density] * 3, at=place)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_dare_ties_agrees_with_peft_on_the_same_mask(tensors, density, peft_with_our_masks):
    # PEFT elects signs before weighting and divides by the count: equal weights make both the same
    place = at(3, "a.weight", ["x", "y", "z"])
    taus = [e - tensors[0] for e in tensors[1:]]
    peft_with_our_masks(place, taus, [density] * 3)
    expected = tensors[0] + merge_utils.dare_ties(taus, torch.ones(3, dtype=torch.float64), density)
    ours = dare_ties(tensors[0], tensors[1:], weight=[1.0] * 3, density=[density] * 3, at=place)
    torch.testing.assert_close(ours, expected, **TOLERANCE)
