from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from evomerge.common.errors import InputError
from evomerge.methods import View, methods
from evomerge.methods.core import magnitude_histograms, trim
from evomerge.methods.core.magnitude_histograms import (
    by_magnitude,
    histogram_of,
    magnitude_histogram,
)
from evomerge.methods.core.masks import at, limits
from evomerge.methods.core.slices import part_of
from evomerge.methods.core.trim import Band, cut, trim_within_bin, trims
from evomerge.methods.core.view import whole_view

REGISTRY = methods()


def some_tensors(count, shape=(33, 9)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def count_of(method):
    return method.experts[1] or 3


def arguments_of(method, count, **values):
    """Defaults, but these values where the method has such a parameter, for every expert."""
    own = {n: v for n, v in values.items() if n in method.parameters}
    each = {n: v for n, v in own.items() if method.parameters[n].per_expert}
    shared = {n: v for n, v in own.items() if n not in each}
    return method.arguments(shared, {f"e{i}": each for i in range(count)}, "test")


def default_arguments(method, count):
    return arguments_of(method, count)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_method_leaves_its_inputs_alone_and_keeps_shape_and_dtype(name):
    method = REGISTRY[name]
    count = method.experts[1] or 3
    base, *experts = some_tensors(count + 1)
    before = [t.clone() for t in (base, *experts)]
    result = method(base, experts, **default_arguments(method, count))
    assert result.shape == base.shape
    assert result.dtype == base.dtype
    for tensor, copy in zip((base, *experts), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("name", [n for n, m in REGISTRY.items() if m.elementwise])
def test_every_elementwise_method_gives_the_same_bytes_in_slices(name):
    method = REGISTRY[name]
    count = method.experts[1] or 3
    base, *experts = (t.flatten() for t in some_tensors(count + 1, (1001,)))
    arguments = arguments_of(method, count, t=0.3)
    places = partial(at, 5, "t", [f"e{i}" for i in range(count)])
    measured = None
    if method.measure is not None:
        measured = method.measured(whole_view(base, experts), {**arguments, "at": places})

    def run(start, stop):
        more = {"at": places(start)} if method.needs_position else {}
        if measured is not None:
            more["measured"] = part_of(measured, slice(start, stop))
        parts = [t[start:stop] for t in (base, *experts)]
        return method.function(parts[0], parts[1:], **arguments, **more)

    whole = run(0, 1001)
    for size in (64, 333):
        pieces = [run(i, min(i + size, 1001)) for i in range(0, 1001, size)]
        assert torch.equal(torch.cat(pieces), whole)


LINE_BY_LINE = [
    ("nuslerp", {"along": "rows"}),
    ("nuslerp", {"along": "columns", "task_vectors": True}),
    ("model_stock", {"filter_wise": True}),
    ("widen", {}),
    ("della", {}),
    ("della_linear", {"rescale": "l1"}),
    ("dare_ties", {"rescale": "l1"}),
    ("tsvm", {}),
]


@pytest.mark.parametrize(("name", "options"), LINE_BY_LINE)
@pytest.mark.parametrize("shape", [(33, 9), (300,), (3, 7, 5)], ids=str)
def test_what_counts_by_row_or_column_is_the_same_in_slices(name, options, shape):
    method = REGISTRY[name]
    base, *experts = some_tensors(count_of(method) + 1, shape)
    arguments = arguments_of(method, len(experts), **options)
    places = partial(at, 0, "", [str(i) for i in range(len(experts))])
    view = whole_view(base, experts)
    measured = method.measured(view, {**arguments, "at": places})
    pieces = []
    for start in range(0, base.numel(), 64):
        part = slice(start, min(start + 64, base.numel()))
        more = {"at": places(start)} if method.needs_position else {}
        more["measured"] = part_of(measured, part)
        slices = [t[part] for t in (view.base, *view.experts)]
        pieces.append(method.function(slices[0], slices[1:], **arguments, **more))
    whole = method(base, experts, **arguments)
    assert torch.equal(torch.cat(pieces).view(shape), whole)


@pytest.mark.parametrize(
    "name", [n for n, m in REGISTRY.items() if "lambda" in m.parameters and not m.needs_position]
)
def test_methods_of_task_vectors_alone_are_told_from_those_that_look_at_the_base(name):
    """`relative`: what is added to the base is the same of equal task vectors from another base."""
    method = REGISTRY[name]
    base, *taus = (t.double() for t in some_tensors(count_of(method) + 1))
    arguments = arguments_of(method, len(taus), epsilon=0.5, t=0.3)
    updates = [
        method(origin, [origin + tau for tau in taus], **arguments) - origin
        for origin in (base, torch.zeros_like(base))
    ]
    assert torch.allclose(*updates, rtol=0, atol=1e-9) is method.relative


SHARED_OUT = {
    "weight": 1 / 3,
    "density": 1.0,
    "select_topk": 1.0,
    "rank": 1.0,
    "lambda": 1.0,
}
CHANGES_ONE_EXPERT = {
    "consensus",  # adds task vectors without weights
    "doge",  # gives them a length
    "arcee_fusion",  # takes over outstanding entries only
    "nearswap",  # moves by at most t
    "iso_c",  # levels singular values
    "iso_cts",
    "tsvm",  # keeps a part of the singular directions
    "pcb",  # keeps a share of the entries, and clips them
    "widen",  # adds task vectors with weights up to 1 each
}
"""Methods that do not give the expert even where all are that expert."""


@pytest.mark.parametrize("name", [n for n in REGISTRY if n not in CHANGES_ONE_EXPERT])
@pytest.mark.parametrize("shape", [(33, 9), (41,)], ids=str)
def test_identical_experts_give_that_expert_when_weights_share_out(name, shape):
    method = REGISTRY[name]
    base, expert = some_tensors(2, shape)
    count = count_of(method)
    arguments = arguments_of(method, count, **{**SHARED_OUT, "weight": 1 / count})
    result = method(base, [expert] * count, **arguments)
    torch.testing.assert_close(result, expert)


@pytest.mark.parametrize("name", [n for n in REGISTRY if "lambda" in REGISTRY[n].parameters])
def test_lambda_zero_gives_the_base(name):
    method = REGISTRY[name]
    base, *experts = some_tensors(count_of(method) + 1)
    arguments = arguments_of(method, len(experts), **{"lambda": 0.0})
    assert torch.equal(method(base, experts, **arguments), base)


BASELESS = {"linear", "passthrough", "slerp"}


def test_every_method_with_a_base_has_a_global_lambda():
    assert {n for n, m in REGISTRY.items() if "lambda" not in m.parameters} == BASELESS
    for name in REGISTRY.keys() - BASELESS:
        parameter = REGISTRY[name].parameters["lambda"]
        assert parameter.low <= 0 < parameter.default <= parameter.high


ORDERED = {"slerp", "opcm"}
"""Methods that say that the order of the experts counts."""


@pytest.mark.parametrize("name", [n for n in REGISTRY if n not in ORDERED])
@pytest.mark.parametrize("shape", [(33, 9), (41,)], ids=str)
def test_the_order_of_the_experts_does_not_count(name, shape):
    method = REGISTRY[name]
    count = count_of(method)
    base, *experts = (t.double() for t in some_tensors(count + 1, shape))
    arguments = arguments_of(method, count)
    if "weight" in arguments:
        arguments["weight"] = [0.3, 0.5, 0.2][:count]
    place = at(0, "t", [f"e{i}" for i in range(count)])
    turned = at(0, "t", [f"e{i}" for i in reversed(range(count))])
    result = placed(method, base, experts, arguments, place)
    back = {k: v[::-1] if isinstance(v, list) else v for k, v in arguments.items()}
    torch.testing.assert_close(placed(method, base, experts[::-1], back, turned), result)


def placed(method, base, experts, arguments, place):
    given = {"at": place} if method.needs_position else {}
    return method(base, experts, **arguments, **given)


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("shape", [(1,), (7,), (99,), (13, 11), (6, 1), (1, 6), (3, 5, 7)], ids=str)
def test_no_task_vectors_give_the_base(name, shape):
    method = REGISTRY[name]
    [base], count = some_tensors(1, shape), count_of(method)
    arguments = arguments_of(method, count, weight=1 / count)
    result = method(base, [base.clone() for _ in range(count)], **arguments)
    torch.testing.assert_close(result, base)


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("shape", [(1,), (7,), (99,), (13, 11), (6, 1), (1, 6), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_expert_that_is_the_base_does_no_harm(name, shape, dtype):
    method = REGISTRY[name]
    base, *experts = (t.to(dtype) for t in some_tensors(count_of(method) + 1, shape))
    experts[-1] = base.clone()
    result = method(base, experts, **arguments_of(method, len(experts)))
    assert result.shape == base.shape
    assert result.dtype == dtype
    assert torch.isfinite(result).all()


def test_trim_keeps_exactly_k_entries_and_of_ties_the_lower_index():
    base = torch.zeros(10)
    expert = torch.tensor([1.0, -2.0, 2.0, 0.5, -2.0, 2.0, 0.0, 1.0, 3.0, -0.5])
    [trim] = trims(whole_view(base, [expert]), density=[0.4])
    kept = trim.keep(expert).nonzero().flatten().tolist()
    assert kept == [1, 2, 4, 8]


def kept_by_sorting(tau, density):
    expected = torch.zeros(len(tau), dtype=torch.bool)
    k = max(1, int(density * len(tau)))
    expected[torch.sort(tau.abs(), descending=True, stable=True).indices[:k]] = True
    return expected


@pytest.fixture(params=["one by one", "by bin"])
def counting(request, monkeypatch):
    """Both ways in which a histogram is counted and searched, whatever the tensor's size."""
    if request.param == "by bin":
        for module in (magnitude_histograms, trim):
            monkeypatch.setattr(module, "SMALL", 0)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("density", [0.001, 0.1, 0.37, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("known", [False, True])
def test_trims_agree_with_a_stable_sort(density, dtype, known):
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(20_011, generator=generator).to(dtype)
    expert = base + (torch.randn(20_011, generator=generator) * 0.01).to(dtype)  # many ties in bf16
    view = View(base, [expert], torch.float32, block=8192)
    given = {"statistics": [magnitude_histogram(view, 0)]} if known else {}
    [trim] = trims(view, density=[density], **given)
    tau = expert.float() - base.float()
    assert torch.equal(trim.keep(tau), kept_by_sorting(tau, density))


TAUS = {
    "one value": torch.full((9000,), 0.25),
    "nothing but zeros": torch.zeros(9000),
    "two values in one bin": torch.tensor([1.0, 1.0 + 2**-23]).repeat(4500),
    "a few entries": torch.tensor([3.0, -1.0, 2.0]),
    "many near values": 1 + torch.arange(9000) % 1500 * 2.0**-23,
    "the whole range of float32": torch.logspace(-44, 38, 9000),
}


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("density", [0.0004, 0.3, 0.5, 0.9999])
@pytest.mark.parametrize("tau", TAUS.values(), ids=TAUS)
def test_trims_of_awkward_task_vectors_agree_with_a_stable_sort(tau, density):
    view = View(torch.zeros_like(tau), [tau], torch.float32, block=4096)
    [trim] = trims(view, density=[density])
    assert torch.equal(trim.keep(tau), kept_by_sorting(tau, density))


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("tau", TAUS.values(), ids=TAUS)
@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 3), (1, 2), (2, 2), (2, 3), (0, 0)])
def test_a_band_keeps_exactly_its_ranks_by_a_stable_sort(tau, first, last):
    first, last = len(tau) * first // 3, len(tau) * last // 3
    view = View(torch.zeros_like(tau), [tau], torch.float32, block=4096)
    [[upper, lower]] = cut([by_magnitude(view, 0)], [[first, last]])
    found = Band(upper, lower)
    expected = torch.zeros(len(tau), dtype=torch.bool)
    order = torch.sort(tau.abs(), descending=True, stable=True).indices
    expected[order[first:last]] = True
    assert torch.equal(found.keep(tau), expected)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("k", [1, 2, 500, 8999])
def test_what_is_kept_of_the_last_bin_completes_the_whole_bins_before_it(k):
    tau = torch.randn(9000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    ranking = by_magnitude(View(torch.zeros(9000), [tau], torch.float32), 0)
    known = histogram_of(ranking)
    found, index = trim_within_bin(ranking, k, known)
    bins = known.bins_of(tau)
    before = set(np.flatnonzero(bins < bins[index[0]]).tolist())
    assert before | set(index.tolist()) == set(found.keep(tau).nonzero().flatten().tolist())
    assert not before & set(index.tolist())


def mask(density, size, seed=0, tensor="t", start=0, expert=0):
    place = at(seed, tensor, ["math", "lang"], start)
    return place.keep(expert, torch.empty(size), limits([density])[0])


def test_masks_depend_on_place_only():
    assert torch.equal(mask(0.3, 1_000, start=4_321), mask(0.3, 10_000)[4_321:5_321])


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_masks_keep_their_share(density):
    kept = mask(density, 400_000).float().mean().item()
    assert abs(kept - density) <= 5 * (density * (1 - density) / 400_000) ** 0.5


def test_masks_of_different_keys_are_independent():
    masks = [
        mask(0.5, 100_000, seed, tensor, expert=expert).float() * 2 - 1
        for seed, tensor, expert in [(0, "t", 0), (1, "t", 0), (0, "u", 0), (0, "t", 1)]
    ]
    for i in range(len(masks)):
        for j in range(i):
            assert abs((masks[i] * masks[j]).mean().item()) < 5 / 100_000**0.5


def test_masks_have_no_serial_correlation():
    bits = mask(0.5, 200_000).float() * 2 - 1
    for lag in (1, 2, 8, 64, 4096):
        assert abs((bits[:-lag] * bits[lag:]).mean().item()) < 5 / 200_000**0.5


def test_masks_beyond_four_billion_entries_do_not_repeat():
    assert not torch.equal(mask(0.5, 10_000), mask(0.5, 10_000, start=1 << 32))


def test_listing_methods_does_not_import_torch():
    code = (
        "import sys; from evomerge.methods import methods; methods();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("parameters", "experts", "message"),
    [
        ({"lamda": 1.0}, {"a": {}}, "no parameter 'lamda'"),
        ({}, {"a": {"density": 1.5}}, r"a.density is 1.5, outside \[0, 1\]"),
        ({"density": 0.5}, {"a": {}}, "given per expert"),
        ({}, {"a": {"normalize": 1.0}}, "not per expert"),
        ({"normalize": "yes"}, {"a": {}}, "expected bool"),
        ({}, {}, "at least 1 experts, not 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(parameters, experts, message):
    with pytest.raises(InputError, match=message):
        REGISTRY["ties"].arguments(parameters, experts, "here")


def test_trim_of_nothing_and_of_everything():
    base, expert = torch.zeros(5), torch.arange(5.0)
    nothing, everything = trims(whole_view(base, [expert, expert]), density=[0.0, 1.0])
    assert not nothing.keep(expert).any()
    assert everything.keep(expert).all()
