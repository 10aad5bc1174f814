from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from merged_bytes import assert_same_bytes, open_family, resident_bytes, streamed_bytes
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.common.errors import InputError, NonFiniteError
from evomerge.config import DtypeConfig, ModelsConfig, SpaceConfig
from evomerge.materialize.disk import stream
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.materialize.plan import plan
from evomerge.methods import merge_method, methods
from evomerge.methods.core.registry import REGISTRY
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.search.spaces.weights import WeightSpace

SEARCHED = [name for name, method in methods().items() if method.parameters]

ELEMENTWISE = [name for name in SEARCHED if methods()[name].elementwise]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"))


def space_of(models, method="ties", **weights):
    most = methods()[method].experts[1]
    names = list(models.sources)[: None if most is None else most + 1]
    digests = {name: models.sources[name].digest for name in names}
    parameters = methods()[method].parameters.values()
    searched = [p for p in parameters if p.type is float]
    searched = [p for p in searched if p.name == "weight"] or searched
    genes = {p.name: [max(p.low, 0), min(p.high, 1.5)] for p in searched}
    config = SpaceConfig(weights={"method": method, "genes": genes, **weights})
    return WeightSpace(config, models.layout, digests, seed=3)


def some_recipe(models, method="ties", **weights):
    space = space_of(models, method, **weights)
    generator = torch.Generator().manual_seed(5)
    return space.decode(torch.rand(space.dimension, generator=generator).double().numpy())


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


def test_shards_hold_the_same_tensors_as_one_file(models, tmp_path):
    recipe = some_recipe(models)
    whole = streamed_bytes(models, recipe, tmp_path / "one")
    sharded = streamed_bytes(models, recipe, tmp_path / "many", shard_bytes=9_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert_same_bytes(sharded, whole)


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_loads_in_transformers_and_gives_the_resident_models_logits(tmp_path, tied):
    models = open_family(tmp_path / "m", tie_word_embeddings=tied)
    recipe = some_recipe(models)
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(recipe)
    embedding, head = (
        resident.model.get_input_embeddings().weight,
        resident.model.get_output_embeddings().weight,
    )
    assert (embedding.data_ptr() == head.data_ptr()) is tied
    out = write_checkpoint(recipe, models, DtypeConfig(), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokens = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, resident.model(tokens).logits)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16


def test_weights_can_be_rounded_to_another_dtype(models, tmp_path):
    out = write_checkpoint(
        some_recipe(models), models, DtypeConfig(weights="bfloat16"), tmp_path / "out"
    )
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


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


def test_a_failed_write_does_not_spoil_the_next(models):
    good = some_recipe(models)
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(good)
    before = {k: v.clone() for k, v in resident.model.state_dict().items()}
    resident.write(some_recipe(models, "linear"))
    resident.write(good)
    for name, value in resident.model.state_dict().items():
        assert torch.equal(value, before[name])


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


def mlp_merge(**changes):
    return Merge(
        **{"slot": 0, "group": "mlp", "method": "ties", "experts": {"math": {}}, **changes}
    )


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


def test_a_recipe_made_from_other_weights_is_refused(models, tmp_path):
    recipe = some_recipe(models)
    other = recipe.model_copy(update={"sources": {**recipe.sources, "math": "0" * 32}})
    with pytest.raises(InputError, match="made from another 'math'"):
        write_checkpoint(other, models, DtypeConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_refused_before_anything_is_written(models, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="the disk has"):
        write_checkpoint(some_recipe(models), models, DtypeConfig(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_checkpoint(some_recipe(models), models, DtypeConfig(), tmp_path / "out")
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


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


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("gpt2", {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}),
        ("gpt_neox", {}),
        ("gemma2", {"head_dim": 8}),
        ("qwen3", {"head_dim": 8}),
        ("phi", {}),
        ("olmo2", {}),
    ],
)
def test_exports_of_other_architectures_load_with_the_resident_models_logits(tmp_path, kind, sizes):
    common = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind != "gpt2":
        common |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
        common |= {"num_attention_heads": 2, "num_key_value_heads": 2}
        common |= {"max_position_embeddings": 32}
    paths = {}
    for seed, name in enumerate(("base", "math")):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **common, **sizes)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        paths[name] = str(tmp_path / name)
        model.save_pretrained(paths[name])
        tiny.save_tokenizer(tmp_path / name)
    models = check_models(ModelsConfig(base=paths["base"], experts={"math": paths["math"]}))
    recipe = some_recipe(models, "ties", granularity="module")
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(recipe)
    out = write_checkpoint(recipe, models, DtypeConfig(), tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, resident.model(tokens).logits)


def test_a_disk_that_fills_up_after_the_check_is_one_message(models, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(stream, "write_shard", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        write_checkpoint(some_recipe(models), models, DtypeConfig(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_can_be_exported_to(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = write_checkpoint(some_recipe(models), models, DtypeConfig(), Path())
    assert (out / "config.json").is_file()
