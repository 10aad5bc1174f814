"""Merges on a simulated GPU: the CPU's bytes, nothing on the wrong device, copies as planned."""

from __future__ import annotations

import pytest
import torch
from merges import open_family, random_recipe, sparse
from simulated_accelerator import NAME, Simulated, running

from evomerge.common import accelerator
from evomerge.materialize.feed import AHEAD, CopyStream, DeviceCache, Prefetched
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.gpu_memory import needs_of
from evomerge.materialize.plan import plan
from evomerge.methods import methods
from evomerge.methods.core.sparsify import sparsifiers

QUICK = {"dare_ties", "model_stock", "opcm", "sce", "task_arithmetic", "ties", "tsvm"}
"""One method of each kind; the others take long together and seldom fail alone."""
ROOMY = 1 << 40
SMALL = 1 << 16
"""Bytes of an element-wise merge's slices, which are small beside these models' tensors."""
BLOCKS = 1 << 20
"""Bytes that sums hold of a tensor's blocks, of a size that does not grow with the tensor."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    return open_family(folder, num_hidden_layers=1, hidden_size=64, intermediate_size=512)


@torch.no_grad()
def merged(models, recipe, feed=None):
    """All tensors of a recipe, and the peak of the bytes beside the results."""
    kernel = Kernel(models.sources, feed=feed, scratch=SMALL)
    steps = plan(recipe, models.layout, models.sources)
    targets = [(torch.empty(s.tensor.shape, device=kernel.device), s) for s in steps]
    if feed is not None:
        assert all(type(out) is Simulated for out, _ in targets)
        accelerator.Accelerator(kernel.device).forget_peak()
        before = accelerator.Accelerator(kernel.device).allocated()
    kernel.fill_all(targets, recipe.seed)
    peak = accelerator.Accelerator(kernel.device).peak() - before if feed is not None else 0
    return {step.name: out.cpu() for out, step in targets}, peak


def assert_same_bytes(found, expected):
    for name, value in expected.items():
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32)), name


def needs(models, *names):
    known = [methods()[name] for name in names]
    return needs_of(models.sources, models.layout, torch.float16, 1, known)


def reads(models, recipe):
    """Bytes of all tensors that the recipe's steps read."""
    steps = plan(recipe, models.layout, models.sources)
    return sum(models.sources[s].read(t.tensor.name).nbytes for t in steps for s in t.reads)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in methods()]
)
def test_every_method_gives_the_cpus_bytes_in_the_memory_that_is_planned(models, name):
    recipe = random_recipe(models, name)
    expected, _ = merged(models, recipe)
    with running() as device:
        found, peak = merged(models, recipe, Prefetched(models.sources, CopyStream(NAME), ROOMY))
        assert device.to_device >= reads(models, recipe)
    assert_same_bytes(found, expected)
    planned = needs(models, name)
    assert peak <= (AHEAD + 2) * planned.step + planned.work + BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_sources_on_the_device_and_no_float64_give_the_cpus_weights(models, monkeypatch, name):
    recipe = random_recipe(models, name)
    expected, _ = merged(models, recipe)
    monkeypatch.setattr(accelerator, "WITHOUT_FLOAT64", {"mps", NAME})
    with running(without=(torch.float64,)):
        feed = DeviceCache(models.sources, NAME)
        for _ in range(2):
            found, peak = merged(models, recipe, feed)
            for tensor, value in expected.items():
                torch.testing.assert_close(found[tensor], value, rtol=1e-3, atol=1e-4)
        assert peak <= needs(models, name).work + BLOCKS


@pytest.mark.slow
@pytest.mark.parametrize("kind", sparsifiers())
def test_every_sparsifier_gives_the_cpus_bytes(models, kind):
    recipe = sparse(random_recipe(models, "task_arithmetic"), kind)
    expected, _ = merged(models, recipe)
    with running():
        found, _ = merged(models, recipe, DeviceCache(models.sources, NAME))
    assert_same_bytes(found, expected)


def test_cached_sources_are_copied_once_and_prefetched_ones_for_every_candidate(models):
    whole = needs(models).sources
    with running() as device:
        cached = DeviceCache(models.sources, NAME)
        prefetched = Prefetched(models.sources, CopyStream(NAME), ROOMY)
        for feed, copied in ((cached, [whole, 0, 0]), (prefetched, [whole] * 3)):
            for seed, wanted in enumerate(copied):
                recipe = random_recipe(models, "task_arithmetic", seed)
                before = device.to_device
                merged(models, recipe, feed)
                assert device.to_device - before == wanted


@torch.no_grad()
def test_the_device_is_waited_for_once_a_candidate(models):
    """Element-wise merges let the host run ahead; only what is not finite is asked for."""
    recipe = random_recipe(models, "task_arithmetic")
    steps = plan(recipe, models.layout, models.sources)
    with running() as device:
        kernel = Kernel(models.sources, feed=DeviceCache(models.sources, NAME))
        targets = [(torch.empty(s.tensor.shape, device=NAME), s) for s in steps]
        kernel.fill_all(targets, 0)
        device.copies = device.to_host = 0
        kernel.fill_all(targets, 0)
        assert (device.copies, device.to_host) == (1, len(steps))


class Hasty(CopyStream):
    """Does not wait for its copies."""

    def receive(self, copy, token):
        return copy


class Careless(CopyStream):
    """Does not say who uses its copies."""

    def receive(self, copy, token):
        self._accelerator.current_stream().wait_event(token)
        return copy


def test_copies_that_are_not_waited_for_or_not_recorded_are_found(models):
    recipe = random_recipe(models, "linear")
    with running(), pytest.raises(RuntimeError, match="before the copy of it was waited for"):
        merged(models, recipe, Prefetched(models.sources, Hasty(NAME), ROOMY))
    with pytest.raises(AssertionError, match="may still use"), running():
        merged(models, recipe, Prefetched(models.sources, Careless(NAME), ROOMY))
