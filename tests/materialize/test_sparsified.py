"""Sparsifiers before any method: merged is what they leave of the task vectors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from merged_bytes import assert_same_bytes, resident_bytes, streamed_bytes
from merges import open_family, random_recipe, sparse, thin
from written_merges import written

from evomerge.common.errors import InputError
from evomerge.materialize.plan import plan
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.methods import methods
from evomerge.methods.core.masks import at, limits
from evomerge.methods.core.slices import part_of
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.methods.core.sparsify_in_recipes import as_one_method
from evomerge.methods.core.view import whole_view

TAKEN = [name for name, m in methods().items() if "lambda" in m.parameters and not m.needs_position]
ELEMENTWISE = [name for name in TAKEN if methods()[name].elementwise]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"), spread=3.0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """float32, where every rounding shows; slices of more than one tensor."""
    folder = tmp_path_factory.mktemp("wide")
    return open_family(
        folder, hidden_size=160, intermediate_size=192, num_hidden_layers=1, dtype=torch.float32
    )


def assert_equal_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].view(torch.int32).equal(value.view(torch.int32)), tensor


def untrimmed(recipe):
    merges = [
        merge.model_copy(
            update={"experts": {e: {**v, "density": 1.0} for e, v in merge.experts.items()}}
        )
        for merge in recipe.merges
    ]
    return recipe.model_copy(update={"merges": tuple(merges)})


@pytest.mark.parametrize("rescale", ["density", "l1"])
@pytest.mark.parametrize(
    ("method", "own"), [("task_arithmetic", "dare_linear"), ("ties", "dare_ties")]
)
@torch.no_grad()
def test_over_task_arithmetic_and_untrimmed_ties_it_is_the_dare_methods_to_the_byte(
    wide, method, own, rescale
):
    recipe = random_recipe(wide, method)
    recipe = thin(untrimmed(recipe) if method == "ties" else recipe, 0.37, rescale)
    merges = tuple(as_one_method(merge) for merge in recipe.merges)
    assert {merge.method for merge in merges} == {own}
    _, expected = written(wide, recipe.model_copy(update={"merges": merges}))
    _, found = written(wide, recipe)
    assert_equal_bits(found, expected)


KINDS = {
    "magnitude": {},
    "breadcrumbs": {"gamma": 0.1},
    "della": {"epsilon": 0.2, "rescale": "probability"},
}


@pytest.mark.parametrize(
    ("method", "kind", "own"),
    [
        ("task_arithmetic", "della", "della_linear"),
        ("task_arithmetic", "breadcrumbs", "breadcrumbs"),
        ("ties", "magnitude", "ties"),
        ("ties", "della", "della"),
        ("ties", "breadcrumbs", "breadcrumbs_ties"),
    ],
)
@torch.no_grad()
def test_a_sparsifier_and_a_combiner_are_their_product_to_the_byte(wide, method, kind, own):
    recipe = random_recipe(wide, method)
    recipe = sparse(untrimmed(recipe) if method == "ties" else recipe, kind, 0.37, **KINDS[kind])
    merges = tuple(as_one_method(merge) for merge in recipe.merges)
    assert {merge.method for merge in merges} == {own}
    _, expected = written(wide, recipe.model_copy(update={"merges": merges}))
    _, found = written(wide, recipe)
    assert_equal_bits(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["magmax", "iso_c", "widen", "dare_linear"])
@torch.no_grad()
def test_any_method_merges_what_any_sparsifier_leaves(wide, kind, name):
    """Two random draws are refused; the others are merged as if the experts were so."""
    if (kind, name) == ("della", "dare_linear"):
        pytest.skip("both draw at random")
    recipe = sparse(random_recipe(wide, name), kind, 0.4, **KINDS[kind])
    _, found = written(wide, recipe)
    for step in plan(recipe, wide.layout, wide.sources):
        tensor, rule = step.tensor.name, step.rule
        base, *experts = (wide.sources[source].read(tensor).double() for source in step.reads)
        sparsifier, n = sparsifiers()[kind], len(experts)
        view = whole_view(base.float(), [expert.float() for expert in experts])
        place = partial(at, recipe.seed, tensor, rule.experts)
        given = sparsifier.shared_by(n, {"density": 0.4, **KINDS[kind]})
        kept, _ = sparsifier(view, {**given, "at": place})
        left = [
            base
            + part_of(kept[i], slice(0, base.numel()))
            .of((expert - base).float().flatten(), place(0), i)
            .view(base.shape)
            for i, expert in enumerate(experts)
        ]
        more = {"at": place(0)} if rule.method.needs_position else {}
        expected = rule.method(base, left, **rule.arguments, **more)
        wrong = (found[tensor].double() - expected).abs() > 1e-5 + 1e-4 * expected.abs()
        assert wrong.double().mean() < 0.01, tensor


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_compiled_sliced_and_on_threads_sparsifiers_have_the_same_bytes(wide, kind, caplog):
    recipe = sparse(random_recipe(wide, "widen"), kind, 0.4, **KINDS[kind])
    _, expected = written(wide, recipe, compiled=False, scratch=1)
    _, compiled = written(wide, recipe, compiled=True)
    assert "uncompiled" not in caplog.text
    assert_equal_bits(compiled, expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _, more = written(wide, recipe, compiled=False)
    finally:
        torch.set_num_threads(threads)
    assert_equal_bits(more, expected)


@torch.no_grad()
def test_the_statistics_of_a_sparsifier_are_kept_for_later_candidates(wide):
    recipe = sparse(random_recipe(wide, "magmax"), "magnitude", 0.4)
    kept = Statistics()
    _, found = written(wide, recipe, statistics=kept)
    assert kept.nbytes > 0
    _, again = written(wide, recipe, statistics=kept)
    assert_equal_bits(again, found)


@pytest.mark.parametrize("name", TAKEN)
@torch.no_grad()
def test_what_is_left_of_the_experts_is_merged_as_if_it_were_theirs(wide, name):
    """A method called by hand in float64 on experts that were thinned out by hand."""
    density = 0.5
    recipe = thin(random_recipe(wide, name), density)
    _, found = written(wide, recipe)
    [limit] = limits([density])
    for step in plan(recipe, wide.layout, wide.sources):
        tensor, rule = step.tensor.name, step.rule
        base, *experts = (wide.sources[source].read(tensor).double() for source in step.reads)
        place = at(recipe.seed, tensor, rule.experts)
        left = [
            base + (e - base) * place.keep(i, e.view(-1), limit).view(e.shape) / density
            for i, e in enumerate(experts)
        ]
        files = [wide.sources[source].calibration for source in rule.experts]
        data = {kind: [f.read(kind, tensor) for f in files] for kind in rule.method.calibrated}
        own = {kind: held for kind, held in data.items() if held[0] is not None}
        sizes = [file.rms("fisher") for file in files]
        expected = rule.method(base, left, calibrated=own, rms=sizes, **rule.arguments)
        wrong = (found[tensor].double() - expected).abs() > 1e-5 + 1e-4 * expected.abs()
        assert wrong.double().mean() < 0.01, tensor  # entries at a trim's threshold may change side


@pytest.mark.parametrize("name", TAKEN)
def test_resident_and_streamed_weights_are_the_same_bytes(models, name, tmp_path):
    recipe = thin(random_recipe(models, name))
    resident = resident_bytes(models, recipe)
    assert_same_bytes(resident, streamed_bytes(models, recipe, tmp_path / "o"))
    plain = resident_bytes(models, random_recipe(models, name))
    moved = any(not v.equal(models.sources["base"].read(t)) for t, v in plain.items())
    assert any(not resident[tensor].equal(value) for tensor, value in plain.items()) is moved


@pytest.mark.parametrize("name", ELEMENTWISE)
@torch.no_grad()
def test_bytes_depend_neither_on_slices_nor_on_threads(wide, name):
    recipe = thin(random_recipe(wide, name))
    _, expected = written(wide, recipe, compiled=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _, sliced = written(wide, recipe, compiled=False, scratch=1)
    finally:
        torch.set_num_threads(threads)
    assert_equal_bits(sliced, expected)


@pytest.mark.parametrize("name", TAKEN)
@torch.no_grad()
def test_at_density_one_it_is_the_bare_method(wide, name):
    recipe = random_recipe(wide, name)
    data = recipe.to_json()
    for merge in data["merges"]:
        merge["drop"] = {"density": 1.0}
    _, expected = written(wide, recipe)
    _, found = written(wide, type(recipe).from_json(data))
    assert_equal_bits(found, expected)


@torch.no_grad()
def test_statistics_of_the_sources_are_neither_used_nor_made(wide):
    kept = Statistics()
    written(wide, random_recipe(wide, "ties"), statistics=kept)
    before = kept.nbytes
    assert before > 0
    recipe = thin(random_recipe(wide, "ties"))
    _, found = written(wide, recipe, statistics=kept)
    fresh, expected = written(wide, recipe, statistics=Statistics())
    assert_equal_bits(found, expected)
    assert (kept.nbytes, fresh.statistics.nbytes) == (before, 0)


@torch.no_grad()
def test_without_rescaling_survivors_stay_as_they_are(wide):
    recipe = thin(random_recipe(wide, "task_arithmetic"), 0.5, "none")
    _, found = written(wide, recipe)
    _, doubled = written(wide, thin(random_recipe(wide, "task_arithmetic"), 0.5))
    for tensor, value in found.items():
        base = wide.sources["base"].read(tensor)
        torch.testing.assert_close((value - base) * 2, doubled[tensor] - base, rtol=0, atol=1e-6)


def test_a_recipe_that_thins_out_what_has_no_task_vectors_is_refused(models):
    data = random_recipe(models, "slerp").to_json()
    data["merges"][0]["drop"] = {"density": 0.5}
    recipe = type(random_recipe(models, "slerp")).from_json(data)
    with pytest.raises(InputError, match="drop: slerp has no task vectors"):
        plan(recipe, models.layout, models.sources)
