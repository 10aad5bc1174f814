"""A model built once, into which candidates are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from merged_bytes import open_family
from paths import recipe_of
from some_recipes import some_recipe, space_of

from evomerge.common.errors import NonFiniteError
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.recipe import Merge


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"))


def resident_of(models):
    return Resident(models.layout, Kernel(models.sources), torch.float32)


def bits(resident):
    """The model's weights as numbers, by their names along the path."""
    state = resident.model.state_dict()
    return {name: value.view(torch.int32).clone() for name, value in state.items()}


def assert_is_fresh(models, resident, recipe):
    """The model has the bytes of one into which only this recipe was written."""
    fresh = resident_of(models)
    fresh.write(recipe)
    found, expected = bits(resident), bits(fresh)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def filled(monkeypatch):
    """The names of the tensors that were merged, in order."""
    names = []
    fill_all = Kernel.fill_all

    def spy(self, targets, seed):
        names.extend(step.name for _, step in targets)
        fill_all(self, targets, seed)

    monkeypatch.setattr(Kernel, "fill_all", spy)
    return names


def test_a_failed_write_does_not_spoil_the_next(models):
    good = some_recipe(models)
    resident = resident_of(models)
    resident.write(good)
    before = bits(resident)
    resident.write(some_recipe(models, "linear"))
    resident.write(good)
    assert all(torch.equal(value, before[name]) for name, value in bits(resident).items())


def test_only_the_groups_that_differ_are_merged(models, filled):
    space = space_of(models, "ties", granularity="module")
    genome = np.full(space.dimension, 0.5)
    resident = resident_of(models)
    resident.write(space.decode(genome))
    assert resident.reuse["tensors kept"] == 0
    assert resident.reuse["tensors"] == len(filled) == len(models.layout.tensors)
    for gene in range(space.dimension):
        filled.clear()
        genome[gene] = 0.7
        recipe = space.decode(genome)
        resident.write(recipe)
        groups = {name.rpartition("layers.")[2].rsplit(".", 2)[0] for name in filled}
        assert len(groups) == 1, "one gene is of one module"
        assert resident.reuse["tensors kept"] == resident.reuse["tensors"] - len(filled) > 0
    assert_is_fresh(models, resident, recipe)
    filled.clear()
    resident.write(recipe)
    assert not filled
    assert resident.reuse["parameters kept"] == resident.reuse["parameters"]


def merge(slot, group, weight, method="task_arithmetic", expert="math", **values):
    experts = {expert: {"weight": weight, **values}}
    return Merge(slot=slot, group=group, method=method, experts=experts)


def random_candidate(models, rng):
    """A path of repeated layers, with few values for everything, so that much comes again."""
    path = [(str(rng.choice(["base", "math"])), int(rng.integers(2))) for _ in range(4)]
    merges = []
    for slot in range(len(path)):
        group = str(rng.choice(["attention", "mlp", "layer"]))
        if rng.random() < 0.5:
            merges.append(merge(slot, group, float(rng.choice([-0.0, 0.0, 0.5]))))
        elif rng.random() < 0.7:
            merges.append(merge(slot, group, 1.0, "dare_linear", density=0.5))
    merges.append(merge(None, "embeddings", float(rng.choice([0.2, 0.4]))))
    return recipe_of(models, path, tuple(merges), seed=int(rng.integers(2)))


def test_whatever_came_before_weights_are_those_of_a_fresh_model(models):
    """Repeated layers, seeds, copies, zeros of both signs, and merges that fail in the middle."""
    rng, resident = np.random.default_rng(0), resident_of(models)
    kept = failed = 0
    for _ in range(60):
        recipe = random_candidate(models, rng)
        if rng.random() < 0.2:
            bad = Merge(
                slot=len(recipe.path) - 1,
                group="norms",
                method="linear",
                experts={"math": {"weight": 0.0}},
                parameters={"base_weight": 0.0},  # 0/0
            )
            others = tuple(m for m in recipe.merges if m.slot != bad.slot)
            with pytest.raises(NonFiniteError):
                resident.write(recipe.model_copy(update={"merges": (*others, bad)}))
            failed += 1
            continue
        resident.write(recipe)
        kept += resident.reuse["tensors kept"]
        assert_is_fresh(models, resident, recipe)
    assert kept > 200
    assert failed > 3


def test_weights_that_somebody_else_changes_in_place_are_merged_again(models, filled):
    recipe, resident = some_recipe(models), resident_of(models)
    resident.write(recipe)
    filled.clear()
    with torch.no_grad():
        resident.model.get_input_embeddings().weight.mul_(2)
        resident.model.model.layers[1].mlp.up_proj.weight.zero_()
    resident.write(recipe)
    assert [name.rsplit(".", 2)[-2] for name in filled] == ["embed_tokens", "up_proj"]
    assert_is_fresh(models, resident, recipe)
