"""A file of mergekit's form may name every method of evomerge's, with that method's defaults."""

from __future__ import annotations

from typing import Literal

import pytest
import tiny
import torch
import yaml
from mergekit_oracle import tensors_in

from evomerge.common.errors import InputError
from evomerge.export.merge import merge_file
from evomerge.mergekit import from_mergekit, to_mergekit
from evomerge.mergekit.methods import FORMS, readable
from evomerge.methods import Method, methods
from evomerge.methods.core.parameters import parameters_of
from evomerge.models.layout import derive_layout

LAYOUT = derive_layout(tiny.llama_config(num_hidden_layers=3))
OWN = sorted(set(methods()) - set(FORMS))


def file_of(name, **keys):
    """A file with as few models and as few parameters as the method takes."""
    form = readable()[name].form
    base = {} if form.base == "ignored" else {"base_model": "org/base"}
    count = form.inputs[1] or 3
    names = ["math", "lang"][: count - len(base)]
    needed = {n: 0.25 for n, p in {**form.per_model, **form.shared}.items() if p.default is None}
    return {
        "merge_method": name,
        **base,
        "models": [{"model": f"org/{name}"} for name in names],
        "parameters": needed,
        **keys,
    }


def recipe_of(data):
    merge = from_mergekit(yaml.safe_dump(data), "file.yaml")
    return merge.recipe(LAYOUT, {name: f"digest of {spec}" for name, spec in merge.models.items()})


def test_there_are_methods_that_mergekit_lacks():
    assert {"tsvm", "wudi", "pcb", "iso_c", "twin", "consensus"} <= set(OWN)


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_file_may_name_every_method(name):
    made = recipe_of(file_of(name))
    if name == "passthrough":
        assert {slot.source for slot in made.path} == {"base"}
        return
    assert len(made.merges) == LAYOUT.layers + len(LAYOUT.outside_groups)
    for merge in made.merges:
        assert merge.method == name
        methods()[name].arguments(merge.parameters, merge.experts, "the file's recipe")


@pytest.mark.parametrize("name", OWN)
def test_what_is_left_out_has_evomerges_default(name):
    known = methods()[name].parameters
    for merge in recipe_of(file_of(name)).merges:
        assert merge.parameters == {n: p.default for n, p in known.items() if not p.per_expert}
        own = {n: p.default for n, p in known.items() if p.per_expert}
        assert merge.experts == {"math": own, "lang": own}


def other(parameter):
    """A value that is not the default, and is exact at the ends of a gradient."""
    if parameter.type is bool:
        return not parameter.default
    if parameter.type is str:
        return next(choice for choice in parameter.choices if choice != parameter.default)
    middle = (parameter.low + parameter.high) / 2
    return middle if middle != parameter.default else parameter.low + (middle - parameter.low) / 2


@pytest.mark.parametrize("name", OWN)
def test_every_parameter_is_read_for_all_models_or_for_one(name):
    known = methods()[name].parameters
    wanted = {n: other(p) for n, p in known.items()}
    shared = {n: v for n, v in wanted.items() if not known[n].per_expert}
    own = {n: v for n, v in wanted.items() if known[n].per_expert}
    data = file_of(name, parameters=shared)
    data["models"][1]["parameters"] = own
    for merge in recipe_of(data).merges:
        assert merge.parameters == shared
        assert merge.experts["lang"] == own
        assert merge.experts["math"] == {n: known[n].default for n in own}


@pytest.mark.parametrize("name", ["pcb", "twin"])
def test_a_file_gives_the_tensors_of_the_method(name, tmp_path):
    paths = tiny.save_family(tmp_path / "m", dtype=torch.float32, num_hidden_layers=1)
    data = file_of(name, base_model=str(paths["base"]))
    data["models"] = [{"model": str(paths[expert])} for expert in ("math", "lang")]
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(data))
    out, notes = merge_file(tmp_path / "file.yaml", tmp_path / "out", {}, None)
    assert any(f"{name} is evomerge's own extension" in note for note in notes)
    ours, (base, *experts) = tensors_in(out), [tensors_in(paths[n]) for n in paths]
    weights = {"weight": [0.3, 0.3]} if name == "twin" else {}  # its default
    for tensor in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        made = methods()[name](base[tensor], [expert[tensor] for expert in experts], **weights)
        assert torch.equal(ours[tensor], made)


def test_a_gradient_and_a_filter_stand_for_parameters_of_evomerges_own():
    data = file_of("twin", parameters={"weight": [0.0, 1.0], "rank": {"filter": "mlp", "value": 1}})
    found = {(m.slot, m.group): m for m in recipe_of(data).merges}
    assert [found[i, "mlp"].experts["math"]["weight"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert found[1, "mlp"].parameters["rank"] == 1.0
    assert found[1, "attention"].parameters["rank"] == methods()["twin"].parameters["rank"].default


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tsmv"}, "merge_method: 'tsmv' is unknown; did you mean 'tsvm'"),
        ({"merge_method": "iso-c"}, "did you mean 'iso_c'"),
        ({"merge_method": "soup"}, "'soup' is unknown; there are .*linear.*tsvm.*wudi"),
        ({"parameters": {"lambda": 11}}, r"parameters\.lambda is 11, outside \[-10, 10\]"),
        ({"parameters": {"weight": 1}}, "'weight' of pcb is not read here; there are density, "),
        ({"parameters": {"lambada": 1}}, "did you mean 'lambda'"),
        ({"models": []}, "either 'models' or 'slices'"),
        ({"models": [{"model": "org/base"}]}, "pcb takes 2 models or more, the base_model"),
        ({"base_model": None}, "base_model: pcb needs one"),
    ],
)
def test_what_an_own_method_does_not_take_is_refused_by_name(change, message):
    data = {**file_of("pcb"), **change}
    with pytest.raises(InputError, match=f"file.yaml: .*{message}"):
        from_mergekit(yaml.safe_dump(data), "file.yaml")


@pytest.mark.parametrize("name", OWN)
def test_no_file_of_an_own_method_is_written_for_mergekit(name):
    specs = {n: f"org/{n}" for n in ("base", "math", "lang")}
    message = f"{name} is evomerge's own method, which mergekit lacks; .*evomerge merge reads"
    with pytest.raises(InputError, match=message):
        to_mergekit(recipe_of(file_of(name)), LAYOUT, specs, "bfloat16")


def test_a_method_of_another_package_may_have_texts_for_parameters(monkeypatch):
    def mixed(base, experts, *, kind: Literal["one", "two"] = "one", hard: bool = False):
        """Mix."""

    method = Method("mixed", mixed, parameters_of(mixed), "none", experts=(1, 2))
    monkeypatch.setattr("evomerge.mergekit.methods.methods", lambda: {"mixed": method})
    made = recipe_of(file_of("mixed", parameters={"kind": ["one", "two"], "hard": True}))
    found = {merge.slot: merge.parameters for merge in made.merges if merge.slot is not None}
    assert [found[i]["kind"] for i in range(3)] == ["one", "one", "two"]
    assert found[0]["hard"] is True
    for wrong, message in (("three", "'three'; expected one of one, two"), (3, "neither a text")):
        with pytest.raises(InputError, match=rf"parameters\.kind.*{message}"):
            recipe_of(file_of("mixed", parameters={"kind": wrong}))
    three = file_of("mixed", models=[{"model": f"org/{i}"} for i in range(3)])
    with pytest.raises(InputError, match="takes 2 to 3 models"):
        recipe_of(three)
