"""What only a GPU can show: its own streams, kernels and memory. Needs `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from merges import open_family, random_recipe

from evomerge.materialize.feed import CopyStream, DeviceCache, MemoryMapped, Prefetched
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.methods import View, methods
from evomerge.methods.core.magnitude_histograms import by_magnitude, magnitude_histogram
from evomerge.methods.core.trim import cut

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ENTRYWISE = {
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "linear",
    "localize_and_stitch",
    "magmax",
    "nearswap",
    "passthrough",
    "ram",
    "ramplus_tl",
    "task_arithmetic",
    "ties",
}
"""Methods without sums or decompositions of the device's own: equal, not only close."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    return open_family(folder, hidden_size=160, intermediate_size=192, num_hidden_layers=1)


def merged(models, recipe, feed, **options):
    steps = plan(recipe, models.layout, models.sources)
    targets = [(torch.empty(s.tensor.shape, device=feed.device), s) for s in steps]
    Kernel(models.sources, feed=feed, **options).fill_all(targets, recipe.seed)
    return {step.name: out.cpu() for out, step in targets}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", methods())
@torch.no_grad()
def test_a_gpu_gives_the_cpus_weights(models, name, compiled):
    recipe = random_recipe(models, name)
    expected = merged(models, recipe, MemoryMapped(models.sources))
    found = merged(models, recipe, DeviceCache(models.sources, "cuda"), compiled=compiled)
    for tensor, value in expected.items():
        if name in ENTRYWISE:
            assert torch.equal(found[tensor], value), tensor
        else:  # float16 has 2⁻¹⁰ between numbers near 1
            torch.testing.assert_close(found[tensor], value, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("room", [0, 1 << 40])
@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "della"])
@torch.no_grad()
def test_prefetched_sources_give_the_same_bytes_as_cached_ones(models, name, room):
    cached = DeviceCache(models.sources, "cuda")
    prefetched = Prefetched(models.sources, CopyStream("cuda"), room)
    for seed in range(3):
        recipe = random_recipe(models, name, seed)
        expected = merged(models, recipe, cached)
        found = merged(models, recipe, prefetched)
        assert all(torch.equal(found[tensor], value) for tensor, value in expected.items())


def test_copies_overlap_with_what_is_computed():
    """A copy and a computation take less time than one after the other."""
    stream = CopyStream("cuda")
    host = torch.empty(1 << 28, dtype=torch.uint8).pin_memory()
    square = torch.randn(8192, 8192, device="cuda")
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(*actions):
        torch.cuda.synchronize()
        started.record()
        copies = [action() for action in actions]
        for copy in copies:
            if copy is not None:
                stream.receive(*copy)
        ended.record()
        torch.cuda.synchronize()
        return started.elapsed_time(ended)

    def compute():
        for _ in range(4):
            square @ square

    def send():
        return stream.send(host)

    for _ in range(2):
        alone = seconds(compute), seconds(send)
        both = seconds(send, compute)
    assert both < 0.9 * sum(alone)


def test_trims_are_the_cpus():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300_001, generator=generator).bfloat16()
    expert = base + (torch.randn(300_001, generator=generator) * 0.01).bfloat16()
    found = {}
    for device in ("cpu", "cuda"):
        view = View(base.to(device), [expert.to(device)], torch.float32)
        known = [magnitude_histogram(view, 0)]
        [trims] = cut([by_magnitude(view, 0)], [[1, 5_000, 150_000]], known)
        found[device] = [(float(one.threshold), int(one.last)) for one in trims]
    assert found["cuda"] == found["cpu"]
