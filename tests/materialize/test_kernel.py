"""Merged tensors: the same bytes by every way, in bounded memory, finite or refused."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from merged_bytes import assert_same_bytes, open_family, resident_bytes, streamed_bytes
from merges import sparse
from mixtures import mixture
from some_recipes import some_recipe, space_of
from transformers import AutoModelForCausalLM

from evomerge.common.errors import InputError, NonFiniteError
from evomerge.config import ModelsConfig
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.materialize.plan import plan
from evomerge.methods import merge_method, methods
from evomerge.methods.core.aim import aimed
from evomerge.methods.core.registry import REGISTRY
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import Merge, Recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"))


SEARCHED = [name for name, method in methods().items() if method.parameters]


ELEMENTWISE = [name for name in SEARCHED if methods()[name].elementwise]


@pytest.mark.parametrize("method", SEARCHED)
def test_resident_and_streamed_weights_are_the_same_bytes(models, method, tmp_path):
    recipe = some_recipe(models, method)
    assert_same_bytes(
        resident_bytes(models, recipe), streamed_bytes(models, recipe, tmp_path / "o")
    )


def test_tensors_tuned_apart_are_the_same_bytes_resident_and_streamed(models, tmp_path):
    recipe = some_recipe(models, "ties", granularity="tensor")
    resident = resident_bytes(models, recipe)
    assert_same_bytes(resident, streamed_bytes(models, recipe, tmp_path / "o"))
    for name in ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"):
        [merge] = [m for m in recipe.merges if (m.slot, m.group) == (1, name)]
        alone = recipe.model_copy(update={"merges": (merge.model_copy(update={"group": "layer"}),)})
        tensor = f"model.layers.1.{name}"
        assert torch.equal(resident_bytes(models, alone)[tensor], resident[tensor])


@pytest.mark.parametrize("method", ELEMENTWISE)
def test_bytes_depend_neither_on_slices_nor_on_threads(models, method):
    recipe = some_recipe(models, method)
    expected = resident_bytes(models, recipe)
    threads = torch.get_num_threads()
    try:
        for count, scratch in ((1, 1 << 20), (2, 1), (2, 1 << 24)):
            torch.set_num_threads(count)
            assert_same_bytes(resident_bytes(models, recipe, scratch), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_large_tensors_give_the_same_bytes_with_one_and_two_threads(tmp_path):
    models = open_family(
        tmp_path, hidden_size=256, intermediate_size=1111, num_hidden_layers=1, vocab_size=301
    )
    threads = torch.get_num_threads()
    try:
        for method in ("dare_ties", "della", "nuslerp", "sce", "slerp"):
            recipe = some_recipe(models, method)
            torch.set_num_threads(1)
            expected = resident_bytes(models, recipe, 1 << 20)
            torch.set_num_threads(2)
            assert_same_bytes(resident_bytes(models, recipe, 1 << 24), expected)
    finally:
        torch.set_num_threads(threads)


def test_parents_as_recipes_are_the_parents(models):
    for name, recipe in space_of(models).parents().items():
        written = resident_bytes(models, recipe)
        for tensor, value in written.items():
            assert torch.equal(value, models.sources[name].read(tensor)), (name, tensor)


def test_scratch_memory_is_bounded_by_the_setting(tmp_path, monkeypatch):
    """No slice handed to an element-wise method is larger than the setting allows."""
    models = open_family(tmp_path, hidden_size=96, intermediate_size=111, num_hidden_layers=1)
    seen = []
    ties = methods()["ties"].function

    def spy(base, experts, **rest):
        seen.append(base.numel())
        return ties(base, experts, **rest)

    monkeypatch.setitem(
        REGISTRY.known,
        "ties",
        type(methods()["ties"])(**{**methods()["ties"].__dict__, "function": spy}),
    )
    resident_bytes(models, some_recipe(models, granularity="model"), scratch=1)
    assert max(seen) == 4096
    assert any(np.prod(spec.shape) > 4096 for spec in models.layout.tensors)


def test_a_result_that_is_not_finite_is_refused_with_the_tensors_name(models):
    recipe = some_recipe(models)
    merges = tuple(
        m.model_copy(
            update={
                "parameters": {"lambda": 10.0, "normalize": False},
                "experts": {"math": {"weight": 10.0, "density": 1.0}},
            }
        )
        if m.slot == 1
        else m
        for m in recipe.merges
    )
    big = Recipe(sources=recipe.sources, path=recipe.path, merges=merges)
    kernel = Kernel({**models.sources, "math": _Scaled(models.sources["math"], 1e4)})
    resident = Resident(models.layout, kernel, torch.float32)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\..*NaN or infinity"):
        resident.write(big)


class _Scaled:
    """A source whose tensors are scaled up, so that merges overflow float16."""

    def __init__(self, source, factor):
        self._source, self._factor = source, factor

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, name):
        return self._source.read(name).float() * self._factor


class _Spoilt(_Scaled):
    """A source with one value that is not finite."""

    def read(self, name):
        tensor = self._source.read(name).float()
        tensor.view(-1)[1] = self._factor
        return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["linear", "iso_c", "iso_cts", "opcm", "twin", "wudi"])
def test_a_model_at_fault_is_named_with_its_tensor(models, method, value):
    """Also where a decomposition stumbles over it, which is no crash."""
    kernel = Kernel({**models.sources, "lang": _Spoilt(models.sources["lang"], value)})
    resident = Resident(models.layout, kernel, torch.float32)
    kind = "NaN" if value != value else "infinity"
    with pytest.raises(NonFiniteError, match=rf"model\.\S+: lang holds {kind} \(1 of \d+ values\)"):
        resident.write(some_recipe(models, method))


def test_a_method_over_whole_matrices_keeps_shapes(models, tmp_path):
    shapes = []

    @merge_method(reference="test", elementwise=False)
    def whole_matrix(base, experts):
        """Look at whole tensors."""
        shapes.append(base.shape)
        return base + experts[0] * 0

    try:
        space = space_of(models)
        merges = tuple(
            Merge(slot=i, group="layer", method="whole_matrix", experts={"math": {}})
            for i in range(2)
        )
        recipe = space.parents()["base"].model_copy(update={"merges": merges})
        resident_bytes(models, recipe)
        assert (48, 32) in shapes
    finally:
        del REGISTRY.known["whole_matrix"]


@pytest.mark.parametrize("rows", [58, 70])
def test_an_expert_with_another_vocabulary_merges_into_the_bases_rows(tmp_path, rows):
    paths = tiny.save_family(tmp_path, ("math",), vocab_size=64)
    model = AutoModelForCausalLM.from_pretrained(paths["math"])
    model.resize_token_embeddings(rows)
    model.save_pretrained(paths["math"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (paths["math"] / name).unlink()
    models = check_models(
        ModelsConfig(base=str(paths["base"]), experts={"math": str(paths["math"])})
    )
    written = resident_bytes(models, space_of(models, "task_arithmetic").baselines()["average"])
    base, expert = (models.sources[n].read("model.embed_tokens.weight") for n in ("base", "math"))
    merged = written["model.embed_tokens.weight"]
    assert merged.shape == base.shape
    shared = min(rows, 64)
    assert torch.equal(merged[:shared], expert[:shared])
    assert torch.equal(merged[shared:], base[shared:])


def cut(recipe, pieces):
    """The recipe with every merge in pieces of these weights of math."""
    own = [{"experts": {"math": {"weight": weight}}} for weight in pieces]
    merges = [Merge.model_validate({**m.model_dump(), "pieces": own}) for m in recipe.merges]
    return recipe.model_copy(update={"merges": tuple(merges)})


BY_ENTRY = [n for n in ELEMENTWISE if methods()[n].by_entry and "weight" in methods()[n].parameters]


@pytest.mark.parametrize("method", BY_ENTRY)
def test_pieces_are_those_of_torch_chunk_each_merged_by_its_own_coefficients(
    models, method, tmp_path
):
    assert {"linear", "task_arithmetic"} <= {*BY_ENTRY}
    recipe, weights = some_recipe(models, method), [0.1, 0.9, 0.4, 0.7, 0.2]
    pieces = resident_bytes(models, cut(recipe, weights), scratch=1)
    assert_same_bytes(pieces, streamed_bytes(models, cut(recipe, weights), tmp_path / "o"))
    wholes = [resident_bytes(models, cut(recipe, [weight])) for weight in weights]
    for name, found in pieces.items():
        parts = found.flatten().chunk(len(weights))
        for index, part in enumerate(parts):
            whole = wholes[index][name].flatten().chunk(len(weights))[index]
            assert torch.equal(part, whole), (name, index)
    assert any(spec.shape[0] % 5 for spec in models.layout.tensors)


@pytest.mark.parametrize("before", ["nothing", "dare", "aim"])
def test_equal_pieces_give_the_bytes_of_the_whole(models, before):
    """Random masks and what holds columns back know their place."""
    recipe = some_recipe(models, "task_arithmetic")
    if before == "dare":
        recipe = sparse(recipe, "dare")
    if before == "aim":
        recipe = aimed(recipe, lambda _: 0.4, 0.9)
    whole = cut(recipe, [0.3]).merges
    whole = [one for merge in whole for one in merge.of_pieces()]
    expected = resident_bytes(models, recipe.model_copy(update={"merges": tuple(whole)}))
    for count in (1, 3, 40):  # norms have 32 entries
        assert_same_bytes(resident_bytes(models, cut(recipe, [0.3] * count)), expected)


def test_pieces_of_a_method_that_looks_at_whole_tensors_are_refused(models):
    with pytest.raises(InputError, match=r"recipe: merge of .*: ties looks at whole tensors"):
        resident_bytes(models, cut(some_recipe(models, "ties"), [0.1, 0.2]))


def test_pieces_run_through_stacked_matrices(tmp_path):
    """A tensor of stacked experts is cut as a whole, not each of its matrices."""
    for seed, name in enumerate(("base", "math")):
        mixture(seed=seed).save_pretrained(tmp_path / name)
        tiny.save_tokenizer(tmp_path / name)
    places = {name: str(tmp_path / name) for name in ("base", "math")}
    models = check_models(ModelsConfig(base=places["base"], experts={"math": places["math"]}))
    recipe = some_recipe(models, "task_arithmetic")
    weights = [0.1, 0.9, 0.4]
    steps = {s.tensor.name: s for s in plan(cut(recipe, weights), models.layout, models.sources)}
    name, step = next((n, s) for n, s in steps.items() if s.tensor.matrices > 1)
    kernel = Kernel(models.sources, "float32")
    found = torch.empty(step.tensor.shape)
    kernel.fill(found, step, recipe.seed)
    for index, weight in enumerate(weights):
        whole = plan(cut(recipe, [weight]), models.layout, models.sources)
        own = torch.empty(step.tensor.shape)
        kernel.fill(own, next(s for s in whole if s.tensor.name == name), recipe.seed)
        part = found.flatten().chunk(3)[index]
        assert torch.equal(part, own.flatten().chunk(3)[index])
