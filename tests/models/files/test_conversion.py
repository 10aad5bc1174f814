"""Mixtures of experts: stored expert by expert, computed stacked, merged matrix by matrix."""

import json

import pytest
import torch
from mergekit_oracle import merged_by_mergekit, tensors_in
from merges import thin
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, SpaceConfig
from evomerge.export.folder import export_recipe
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.materialize.plan import plan
from evomerge.methods import find_method
from evomerge.methods.core.masks import at, limits
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.checks.checked_models import check_models
from evomerge.models.layout import derive_layout
from evomerge.search.spaces.weights import WeightSpace

SMALL = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**SMALL, "shared_expert_intermediate_size": 12},
    "qwen3_moe": SMALL,
    "olmoe": {"num_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
}


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.clone() for k, v in tensors.items()}, path, {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_experts_stored_apart_read_as_the_stacked_ones(kind, model_of, tmp_path):
    model = model_of(kind, **KINDS[kind])
    model.save_pretrained(tmp_path / "apart")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    apart = open_checkpoint("base", str(tmp_path / "apart"))
    state = model.state_dict()
    assert set(apart.names()) == set(state)
    for name in state:
        assert torch.equal(apart.read(name), state[name]), name
        assert apart.dtype(name) == state[name].dtype
    assert apart.digest == open_checkpoint("base", str(tmp_path / "stacked")).digest


@pytest.mark.parametrize("kind", KINDS)
def test_the_router_is_a_module_of_its_own(kind, config_of):
    layout = derive_layout(config_of(kind, **KINDS[kind]))
    assert layout.modules[:3] == ("attention", "mlp", "router")
    routers = {spec.suffix for spec in layout.tensors if spec.group == "router"}
    assert routers <= {
        *("mlp.gate.weight", "mlp.router.weight", "mlp.shared_expert_gate.weight"),
        "block_sparse_moe.router.weight",
    }
    assert all(spec.group == "mlp" for spec in layout.tensors if ".experts." in spec.name)


def test_a_plain_decoder_has_no_router_and_no_stacks(config_of):
    layout = derive_layout(config_of("llama"))
    assert "router" not in layout.modules
    assert {spec.matrices for spec in layout.tensors} == {1}


def test_a_missing_expert_is_found_when_the_model_is_opened(model_of, tmp_path):
    model_of("mixtral", num_local_experts=4).save_pretrained(tmp_path)
    gone = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    rewrite(tmp_path, lambda tensors: tensors.pop(gone))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.gate_up_proj cannot be put"):
        open_checkpoint("base", str(tmp_path))


def test_a_layer_without_experts_is_refused(model_of, tmp_path):
    model_of("mixtral", num_local_experts=2).save_pretrained(tmp_path)
    part = "layers.1.block_sparse_moe.experts."
    rewrite(tmp_path, lambda t: [t.pop(name) for name in list(t) if part in name and "w2" in name])
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.down_proj is missing"):
        open_checkpoint("base", str(tmp_path))


def test_quantized_experts_are_refused(model_of, tmp_path):
    model_of("mixtral", num_local_experts=2).save_pretrained(tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.1.w3.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(InputError, match=r"experts\.1\.w3\.weight is stored as torch\.int8"):
        open_checkpoint("base", str(tmp_path))


@pytest.fixture(scope="module")
def mixtrals(tmp_path_factory, model_of, add_tokenizer):
    """Folder of a base and two experts, float32, each saved expert by expert."""
    folder = tmp_path_factory.mktemp("mixtrals")
    base = model_of("mixtral", num_local_experts=4)
    for seed, name in enumerate(("base", "a", "b")):
        model = model_of("mixtral", num_local_experts=4)
        model.load_state_dict(base.state_dict())
        if name != "base":
            torch.manual_seed(seed)
            for weight in model.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
        model.save_pretrained(folder / name)
        add_tokenizer(folder / name)
    return folder


def recipe_of(models, method, granularity="model"):
    digests = {name: source.digest for name, source in models.sources.items()}
    genes = {"t": [0, 1]} if method == "slerp" else {"weight": [0, 1.5]}
    config = SpaceConfig(weights={"method": method, "genes": genes, "granularity": granularity})
    space = WeightSpace(config, models.layout, digests, seed=3)
    generator = torch.Generator().manual_seed(5)
    return space.decode(torch.rand(space.dimension, generator=generator).double().numpy())


def open_three(folder, campaign, experts=2):
    names = ("a", "b")[:experts]
    config = campaign(folder / "base", **{name: folder / name for name in names})
    return config, check_models(config)


def test_a_random_drop_has_a_mask_for_every_matrix_of_a_stack(mixtrals, campaign):
    _, models = open_three(mixtrals, campaign)
    recipe = thin(recipe_of(models, "task_arithmetic"), 0.5)
    stacks = [s for s in plan(recipe, models.layout, models.sources) if s.tensor.matrices > 1]
    assert stacks
    for step in stacks:
        name, out = step.tensor.name, torch.empty(step.tensor.shape)
        Kernel(models.sources).fill(out, step, recipe.seed)
        form = (step.tensor.matrices, -1, out.shape[-1])
        base = models.sources["base"].read(name).view(form)
        for index, changed in enumerate(out.view(form) != base):
            place = at(recipe.seed, f"{name}[{index}]", step.rule.experts)
            kept = [place.keep(i, changed, limits([0.5])[0]) for i in range(2)]
            assert torch.equal(changed, kept[0] | kept[1])


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_ties", "slerp"])
def test_a_mixture_is_the_same_in_search_and_in_the_export(method, mixtrals, campaign, tmp_path):
    config, models = open_three(mixtrals, campaign, experts=1 if method == "slerp" else 2)
    recipe = recipe_of(models, method, "module")
    assert {"router"} < {merge.group for merge in recipe.merges if merge.slot is not None}
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(recipe)
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    for name, weight in resident.model.state_dict().items():
        assert torch.equal(weight, loaded[name]), name


def test_an_export_has_the_names_that_transformers_saves(mixtrals, campaign, tmp_path):
    config, models = open_three(mixtrals, campaign)
    origin = MergeInputs(config, models, DtypeConfig())
    out = export_recipe(recipe_of(models, "ties"), origin, tmp_path / "out")
    assert set(tensors_in(out)) == set(tensors_in(mixtrals / "base"))


def test_shards_of_a_mixture_are_listed_by_the_names_they_hold(mixtrals, campaign, tmp_path):
    from evomerge.materialize.disk.checkpoint import write_checkpoint

    _, models = open_three(mixtrals, campaign)
    recipe = recipe_of(models, "task_arithmetic")
    out = write_checkpoint(recipe, models, DtypeConfig(), tmp_path / "out", shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(tensors_in(out))
    assert len(set(index.values())) > 2
    assert open_checkpoint("base", str(out)).names() == models.layout.names


def test_a_trim_looks_at_each_matrix_by_itself(mixtrals, campaign, tmp_path):
    config, models = open_three(mixtrals, campaign)
    recipe = recipe_of(models, "ties")
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")
    assert "looks at each matrix by itself" in (out / "mergekit.yaml").read_text()
    base, one, two = (tensors_in(mixtrals / name) for name in ("base", "a", "b"))
    layer = next(m for m in recipe.merges if (m.slot, m.group) == (1, "layer"))
    method = find_method("ties", "here")
    arguments = method.arguments(layer.parameters, layer.experts, "here")
    for name, found in tensors_in(out).items():
        if ".layers.1." in name:
            alone = method(base[name], [one[name], two[name]], **arguments)
            assert torch.equal(found, alone), name


def test_mergekit_merges_a_mixture_alike_entry_by_entry(mixtrals, campaign, tmp_path):
    config, models = open_three(mixtrals, campaign)
    recipe = recipe_of(models, "task_arithmetic")
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "ours")
    merged_by_mergekit((out / "mergekit.yaml").read_text(), tmp_path / "theirs")
    theirs = open_checkpoint("base", str(tmp_path / "theirs"))
    ours = open_checkpoint("base", str(out))
    for name in ours.names():
        torch.testing.assert_close(ours.read(name), theirs.read(name), rtol=1e-5, atol=1e-6)
