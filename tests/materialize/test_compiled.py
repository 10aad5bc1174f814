"""Compiled passes give the bytes of the plain ones, and a method that cannot be compiled works."""

from __future__ import annotations

import pytest
import torch
from merges import open_family, random_recipe, thin
from written_merges import written

from evomerge.materialize.compiled import Compiler
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.methods import View, methods
from evomerge.methods.core.magnitude_histograms import by_magnitude, magnitude_histogram
from evomerge.methods.core.masks import at, limits
from evomerge.methods.core.trim import cut
from evomerge.recipe import Merge

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiler():
    """One for all lengths, which share what it compiles."""
    return Compiler()


ELEMENTWISE = [name for name, method in methods().items() if method.elementwise]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tensors of more than the entries from which on a compiled pass is called."""
    folder = tmp_path_factory.mktemp("family")
    return open_family(folder, hidden_size=160, intermediate_size=192, num_hidden_layers=1)


@pytest.mark.parametrize("name", ELEMENTWISE)
@torch.no_grad()
def test_compiled_methods_give_the_same_bytes(models, name, caplog):
    recipe = random_recipe(models, name)
    _, plain = written(models, recipe, compiled=False, scratch=1)
    _, compiled = written(models, recipe, compiled=True)
    assert "uncompiled" not in caplog.text
    for tensor, value in plain.items():
        assert value.view(torch.int32).equal(compiled[tensor].view(torch.int32)), tensor


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
@torch.no_grad()
def test_compiled_pieces_are_the_same_bytes_wherever_they_begin(models, name, caplog):
    recipe = random_recipe(models, name)
    pieces = [{"experts": {"math": {"weight": 0.1 * i}}} for i in range(1, 8)]
    own = [Merge.model_validate({**m.model_dump(), "pieces": pieces}) for m in recipe.merges]
    recipe = recipe.model_copy(update={"merges": tuple(own)})
    _, plain = written(models, recipe, compiled=False, scratch=1)
    _, compiled = written(models, recipe, compiled=True)
    assert "uncompiled" not in caplog.text
    for tensor, value in plain.items():
        assert value.view(torch.int32).equal(compiled[tensor].view(torch.int32)), tensor


@pytest.mark.parametrize("name", ["ties", "widen"])
@torch.no_grad()
def test_compiled_what_a_random_drop_leaves_is_merged_to_the_same_bytes(models, name, caplog):
    """One of task vectors alone, and one that looks at the base too."""
    recipe = thin(random_recipe(models, name), rescale="l1")
    _, plain = written(models, recipe, compiled=False, scratch=1)
    _, compiled = written(models, recipe, compiled=True)
    assert "uncompiled" not in caplog.text
    for tensor, value in plain.items():
        assert value.view(torch.int32).equal(compiled[tensor].view(torch.int32)), tensor


@pytest.mark.parametrize("n", [300, 1000, 4096, 4097])
@torch.no_grad()
def test_compiled_trims_and_masks_know_the_places_of_slices_of_any_length(n, compiler):
    tau = torch.randn(n, generator=torch.Generator().manual_seed(n)).mul(4).round()
    [[trim]] = cut([by_magnitude(View(tau * 0, [tau], torch.float32), 0)], [[n // 3]])
    where = slice(n // 4, n)
    arguments = tau[where], trim.part(where), at(0, "w", ["math"], where.start), limits([0.3])[0]
    wanted = _trimmed_and_masked(*arguments)
    assert torch.equal(compiler(_trimmed_and_masked, *arguments), wanted)
    assert int((wanted != 0).sum()) > 0


def _trimmed_and_masked(tau, trim, place, limit):
    return trim.of(tau) + 0.5 * place.keep(0, tau, limit)


def test_a_function_that_cannot_be_compiled_is_called_as_it_is(caplog):
    def asks(tensor):
        return tensor + 1 if tensor.sum() > 0 else tensor

    compiler = Compiler()
    for _ in range(2):
        assert torch.equal(compiler(asks, torch.ones(100)), torch.full((100,), 2.0))
    assert caplog.text.count("uncompiled") == 1


def test_candidates_share_the_sources_statistics_and_evicted_ones_come_back(models):
    recipe = random_recipe(models, "ties")
    kernel, first = written(models, recipe, statistics=Statistics())
    kept = kernel.statistics.nbytes
    assert kept > 0
    tight, second = written(models, recipe, statistics=Statistics(limit=1))
    assert tight.statistics.nbytes <= kept / 10
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_a_statistic_is_computed_once(monkeypatch):
    calls = []

    def counting(view, expert):
        calls.append(expert)
        return magnitude_histogram(view, expert)

    statistics = Statistics()
    base = torch.zeros(100)
    view = View(base, [base + 1, base + 2], torch.float32)
    for _ in range(3):
        found = statistics.of(counting, view, "w", ["math", "lang"])
    assert calls == [0, 1]
    assert [f.counts[-1] for f in found] == [100, 100]
