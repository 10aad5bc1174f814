"""Records of weights: the same to the bit, or by how much they differ, and why."""

from __future__ import annotations

import json
import re

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from evomerge.export.merge import merge_file
from evomerge.materialize.disk.provenance import Sources, load_sources, provenance_of, sources_text
from evomerge.materialize.disk.weight_record import difference, record_weights, signed_sums
from evomerge.models.checkpoint import open_checkpoint
from evomerge.recipe import Merge, Recipe, Slot, load_recipe

STATED = re.compile(r"the largest difference is (\S+) of its tensor \((\S+);")


def dense(generator):
    return torch.randn(300_000, generator=generator)


def constant(generator):
    return torch.ones(300_000)


def few(generator):
    out = torch.zeros(300_000)
    out[torch.randint(300_000, (30,), generator=generator)] = 1
    return out


def periodic(generator):
    return torch.sin(torch.arange(3_000_000) / 7)


@pytest.mark.parametrize("change", [dense, constant, few, periodic])
def test_sums_tell_how_far_two_tensors_are_apart_whatever_the_difference(change):
    generator = torch.Generator().manual_seed(0)
    apart = 1e-3 * change(generator)
    tensor = torch.randn(apart.shape, generator=generator)
    found = (signed_sums(tensor + apart) - signed_sums(tensor)).norm()
    assert found == pytest.approx(float(apart.norm()), rel=0.4)


def test_sums_are_the_same_for_good():
    """They stand in files: other signs would make every old record wrong."""
    sums = signed_sums(torch.arange(1000, dtype=torch.float16).reshape(10, 100))
    assert sums[:4].tolist() == [-208.0, 15.0, 340.0, 799.0]
    again = signed_sums(torch.ones(3_000_000))
    assert again[:4].tolist() == [201.0, 49.0, 201.0, 43.0]


@pytest.fixture
def exported(tmp_path):
    """A merge that was written from its recipe, in `one`."""
    return export_of(tmp_path, "ties", {"math": {"weight": 1.0}})


def export_of(tmp_path, method, experts):
    folders = tiny.save_family(tmp_path / "models")
    digests = {name: open_checkpoint(name, str(path)).digest for name, path in folders.items()}
    merges = [Merge(slot=slot, group="layer", method=method, experts=experts) for slot in (0, 1)]
    recipe = Recipe(sources=digests, path=[Slot(source="base", layer=i) for i in (0, 1)])
    recipe = recipe.model_copy(update={"merges": tuple(merges)})
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    given = {name: str(path) for name, path in folders.items()}
    merge_file(tmp_path / "recipe.json", tmp_path / "one", given, None)
    return tmp_path / "one"


def again(exported, weights=None):
    folder, notes = merge_file(exported / "recipe.json", exported.parent / "again", {}, weights)
    return folder, notes[-1]


def recorded(folder):
    return record_weights(folder, load_recipe(folder / "recipe.json"), statistics=False)


def change(folder, **facts):
    """Pretend that the export was made with other things."""
    sources = load_sources(folder / "evomerge.json")
    made = sources.made.model_copy(update=facts)
    text = sources_text(sources.model_copy(update={"made": made}))
    (folder / "evomerge.json").write_text(text)


def test_a_recipe_merged_again_gives_the_digest_it_was_exported_with(exported):
    folder, note = again(exported)
    digest = load_sources(exported / "evomerge.json").made.digest
    assert note == f"the weights are those that were exported, to the bit (digest {digest})"
    assert (
        record_weights(folder, load_recipe(folder / "recipe.json"), statistics=False).digest
        == digest
    )


def test_the_digest_is_that_of_the_weights_however_they_are_dealt_to_files(exported):
    folder, _ = merge_file(
        exported / "recipe.json", exported.parent / "shards", {}, None, shard_bytes=10_000
    )
    assert len(list(folder.glob("*.safetensors"))) > 2
    made = [load_sources(place / "evomerge.json").made for place in (folder, exported)]
    assert made[0].digest == made[1].digest


def elsewhere(exported):
    """The export as another machine might have made it: two tensors are a little off."""
    file = exported / "model.safetensors"
    tensors = load_file(file)
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    generator, shares = torch.Generator().manual_seed(0), {}
    for name, size in zip(names, (0.01, 0.1), strict=True):
        old = tensors[name].float()
        new = (old + size * old.std() * torch.randn(old.shape, generator=generator)).half()
        shares[name] = float((new.float() - old).norm() / old.norm())
        tensors[name] = new
    save_file(tensors, file, {"format": "pt"})
    found = recorded(exported)
    change(exported, digest=found.digest, tensors=found.tensors, torch="2.9.9")
    return names[1], shares[names[1]]


def test_other_weights_are_counted_and_their_difference_estimated(exported):
    name, share = elsewhere(exported)
    _, note = again(exported)
    assert note.startswith("2 of 21 tensors are not those that were exported;")
    stated, where = STATED.search(note).groups()
    assert where == name
    assert float(stated) == pytest.approx(share, rel=0.4)


def test_the_likely_reasons_are_told(exported):
    elsewhere(exported)
    change(exported, cpu="x86_64 AVX2", statistics=True)
    _, note = again(exported)
    assert f"torch is {torch.__version__}, there 2.9.9" in note
    assert ", there x86_64 AVX2" in note
    assert "ties looks at whole tensors" in note
    assert "read there from the run's statistics" in note
    assert "evomerge is" not in note


def test_another_dtype_is_told_and_its_values_are_not_called_different(exported):
    _, note = again(exported, "float32")
    assert "21 of 21 tensors are not those that were exported" in note
    assert "their values are the same" in note
    assert "it is written as float32, the export as the base is stored" in note


def test_a_difference_without_a_reason_is_to_be_reported(exported):
    elsewhere(exported)
    change(exported, torch=str(torch.__version__))
    assert "please report it" in again(exported)[1]


def test_tensors_that_only_one_has_are_counted(exported):
    made = load_sources(exported / "evomerge.json").made
    tensors = dict(made.tensors)
    tensors["another.weight"] = tensors.pop("lm_head.weight")
    found = difference(made, made.model_copy(update={"digest": "", "tensors": tensors}), exported)
    assert set(found.tensors) == {"another.weight", "lm_head.weight"}
    assert found.of == 22


def test_a_recipe_without_a_record_is_merged_without_a_word(exported):
    sources = load_sources(exported / "evomerge.json")
    old = sources.model_dump(mode="json", exclude={"made"})
    (exported / "evomerge.json").write_text(json.dumps(old))
    assert Sources.model_validate(old).made is None
    _, notes = merge_file(exported / "recipe.json", exported.parent / "again", {}, None)
    assert not any("exported" in note for note in notes)


def test_a_merge_of_merges_keeps_how_its_parents_were_made_but_not_their_records(exported):
    assert load_sources(exported / "evomerge.json").made is not None
    assert provenance_of(exported).sources.made is None


def test_an_export_made_before_a_method_changed_says_so(tmp_path):
    """Exports without versions of their methods were made by the first versions."""
    exported = export_of(tmp_path, "iso_c", {"math": {}, "lang": {}})
    made = load_sources(exported / "evomerge.json").made
    assert made.methods == {"iso_c": 2}
    elsewhere(exported)
    change(exported, torch=str(torch.__version__), methods={})
    _, note = again(exported)
    assert "because iso_c is not what it was: its decompositions no longer depend on" in note
    change(exported, methods={"iso_c": 2})
    _, notes = merge_file(exported / "recipe.json", tmp_path / "third", {}, None)
    assert "please report it" in notes[-1]
