"""One step per tensor: the finest merge that names it, checked against the models."""

from __future__ import annotations

import pytest
from merged_bytes import open_family
from some_recipes import some_recipe

from evomerge.common.errors import InputError
from evomerge.materialize.plan import plan
from evomerge.recipe import Merge, Slot


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"))


def mlp_merge(**changes):
    return Merge(
        **{"slot": 0, "group": "mlp", "method": "ties", "experts": {"math": {}}, **changes}
    )


def test_a_tensors_own_merge_goes_before_its_modules_and_that_before_its_layers(models):
    def merge(group, weight):
        experts = {"math": {"weight": weight}}
        return Merge(slot=0, group=group, method="task_arithmetic", experts=experts)

    merges = (merge("layer", 0.1), merge("attention", 0.2), merge("self_attn.q_proj.weight", 0.3))
    recipe = some_recipe(models).model_copy(update={"merges": merges})
    steps = {s.name: s for s in plan(recipe, models.layout, models.sources)}
    weights = [
        steps[f"model.layers.0.{name}.weight"].rule.arguments["weight"]
        for name in ("mlp.up_proj", "self_attn.k_proj", "self_attn.q_proj")
    ]
    assert weights == [[0.1], [0.2], [0.3]]


def test_a_merge_of_a_tensor_that_the_layer_has_not_is_refused(models):
    wrong = Merge(slot=0, group="self_attn.q_prj.weight", method="ties", experts={"math": {}})
    recipe = some_recipe(models).model_copy(update={"merges": (wrong,)})
    with pytest.raises(InputError, match=r"q_prj.*no such group; it has layer, .*attn.q_proj"):
        plan(recipe, models.layout, models.sources)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {"base": "0", "art": "1"}, "merges": ()}, "names source 'art'"),
        ({"merges": (mlp_merge(group="wings"),)}, "slot 0, wings: the model has no such group"),
        ({"merges": (mlp_merge(method="tise"),)}, "did you mean 'ties'"),
        ({"merges": (mlp_merge(experts={"math": {"wieght": 1}}),)}, "no parameter 'wieght'"),
        ({"path": (Slot(source="base", layer=0), Slot(source="base", layer=9))}, "names layer 9"),
    ],
)
def test_a_recipe_that_names_what_the_models_lack_is_refused(models, change, message):
    recipe = some_recipe(models).model_copy(update=change)
    with pytest.raises(InputError, match=message):
        plan(recipe, models.layout, models.sources)
