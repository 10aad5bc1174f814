"""Adapters as experts, against what PEFT itself makes of them."""

import copy
import json
import pickle

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.common.errors import InputError
from evomerge.models.adapter import Adapter
from evomerge.models.checks.checked_models import check_models
from evomerge.models.open_models import open_models
from evomerge.models.vocabulary import with_base_rows

ATTENTION = ["q_proj", "v_proj"]
KINDS = {
    "plain": ("llama", {"r": 4, "lora_alpha": 10, "target_modules": ATTENTION}),
    "rslora": ("llama", {"r": 6, "use_rslora": True, "target_modules": "all-linear"}),
    "dora": ("llama", {"r": 4, "use_dora": True, "target_modules": [*ATTENTION, "down_proj"]}),
    "conv1d": ("gpt2", {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d dora": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "use_dora": True}),
    "biases": ("gpt2", {"r": 3, "target_modules": ["c_fc"], "bias": "all"}),
    "bias of lora": ("gpt2", {"r": 3, "target_modules": ["c_fc"], "lora_bias": True}),
    "embeddings": ("llama", {"r": 2, "target_modules": ["embed_tokens", "lm_head"]}),
    "whole modules": (
        "llama",
        {"r": 2, "target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
    ),
    "patterns": (
        "llama",
        {
            "r": 4,
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 7, "up_proj": 2},
            "alpha_pattern": {"v_proj": 32},
            "layers_to_transform": [1, 2],
        },
    ),
    "stacked experts": (
        "mixtral",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


@pytest.fixture
def family(model_of, add_tokenizer, tmp_path):
    """(kind of model, dtype, LoRA settings, **changes) -> folders of a base and an adapter."""

    def make(kind, dtype=torch.float32, settings=None, config=LoraConfig, **changes):
        model = model_of(kind, **changes).to(dtype)
        model.save_pretrained(tmp_path / "base", save_original_format=False)
        add_tokenizer(tmp_path / "base")
        tuned = get_peft_model(copy.deepcopy(model), config(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(9)
        for weight in tuned.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator) * 0.2
                weight.data = (weight.data.float() + noise).to(weight.dtype)
        tuned.save_pretrained(tmp_path / "adapter")
        return tmp_path / "base", tmp_path / "adapter"

    return make


def merged_by_peft(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_reads_as_the_bytes_that_pefts_own_merge_gives(kind, dtype, family, campaign):
    architecture, settings = KINDS[kind]
    base, folder = family(architecture, dtype, settings)
    adapter = open_models(campaign(base, lora=folder))["lora"]
    wanted = merged_by_peft(base, folder)
    changed = 0
    for name in adapter.names():
        assert adapter.dtype(name) == adapter.read(name).dtype == wanted[name].dtype
        assert torch.equal(adapter.read(name), wanted[name]), name
        changed += not torch.equal(adapter.read(name), adapter.base.read(name))
    assert 0 < changed < len(adapter.names()) or kind == "biases"


def test_adapters_of_different_rank_are_experts_of_one_campaign(family, campaign, tmp_path):
    base, first = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    first = first.rename(tmp_path / "first")
    _, second = family("llama", settings={"r": 5, "target_modules": "all-linear"})
    models = check_models(campaign(base, first=first, second=second))
    assert models.layout == models.sources["base"].layout
    assert models.sources["first"].digest != models.sources["second"].digest


def test_reading_an_adapter_leaves_the_base_as_it_was(family, campaign):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    models = open_models(campaign(base, lora=folder))
    name = "model.layers.0.self_attn.q_proj.weight"
    before = models["base"].read(name).clone()
    first, again = models["lora"].read(name), models["lora"].read(name)
    assert torch.equal(first, again)
    assert torch.equal(models["base"].read(name), before)


def test_an_adapters_digest_is_of_its_content_and_the_bases(family, campaign, edit_config):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})

    def digest():
        return open_models(campaign(base, lora=folder))["lora"].digest

    before = digest()
    config = json.loads((folder / "adapter_config.json").read_text())
    moved = config | {"base_model_name_or_path": "/elsewhere", "target_modules": ATTENTION[::-1]}
    (folder / "adapter_config.json").write_text(json.dumps(moved))
    assert digest() == before
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert digest() != before
    (folder / "adapter_config.json").write_text(json.dumps(config))
    edit_config(base, rms_norm_eps=1e-3)
    assert digest() != before


def test_an_adapter_is_pickled_as_its_place_and_opened_again(family, campaign):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    models = open_models(campaign(base, lora=folder))
    sent = pickle.dumps(models)
    again = pickle.loads(sent)
    assert len(sent) < 2000
    assert isinstance(again["lora"], Adapter)
    assert again["lora"].base is again["base"]
    assert again["lora"].digest == models["lora"].digest


def test_what_training_leaves_beside_an_adapter_is_ignored(family, campaign):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin"):
        (folder / name).write_text("junk")
    assert isinstance(check_models(campaign(base, lora=folder)).sources["lora"], Adapter)


def test_an_untrained_adapter_is_told_to_equal_the_base(family, campaign, model_of):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    get_peft_model(model_of(), LoraConfig(r=2, target_modules=ATTENTION)).save_pretrained(folder)
    with pytest.raises(InputError, match=r"models\.experts\.lora: equal to the base"):
        check_models(campaign(base, lora=folder))


def test_an_adapter_of_a_model_by_another_name_is_noted(family, campaign):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "meta/other"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    notes = check_models(campaign(base, lora=folder)).notes
    assert any("trained on meta/other" in note for note in notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changes"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is not merged here"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is not merged here"),
        ({"peft_type": "VERA"}, "peft_type 'VERA'; only LORA"),
        ({"target_modules": ["nothing"]}, "trained on another base"),
        ({"r": 5}, r"weights have rank 2, but its adapter_config\.json says 5"),
        ({"rank_pattern": {"v_proj": 3}}, r"have rank 2, .* says 3 .* for .*v_proj\.lora_A"),
        ({"target_modules": ["q_proj"]}, "fits nothing in the base"),
        ({"target_modules": [*ATTENTION, "o_proj"]}, r"lacks model\.layers\.0\.self_attn\.o_proj"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(settings, message, family, campaign):
    base, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=rf"models\.experts\.lora: .*{message}"):
        open_models(campaign(base, lora=folder))


def test_another_kind_of_adapter_is_refused_with_the_way_out(family, campaign):
    base, folder = family("llama", settings={"target_modules": ATTENTION}, config=LoHaConfig)
    with pytest.raises(InputError, match="'LOHA'; only LORA is merged here: merge it with peft"):
        open_models(campaign(base, lora=folder))


def test_a_trained_head_over_tied_embeddings_is_refused(family, campaign):
    settings = {"r": 2, "target_modules": ATTENTION, "modules_to_save": ["lm_head"]}
    base, folder = family("llama", settings=settings, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"lm_head\.weight, which the base ties"):
        open_models(campaign(base, lora=folder))


def test_embeddings_tied_to_the_head_are_merged_as_peft_does(family, campaign):
    settings = {"r": 2, "target_modules": ["embed_tokens"]}
    base, folder = family("llama", settings=settings, tie_word_embeddings=True)
    adapter = open_models(campaign(base, lora=folder))["lora"]
    wanted = merged_by_peft(base, folder)
    for name in (*adapter.names(), "lm_head.weight"):
        assert torch.equal(adapter.read(name), wanted[name]), name


RESIZED = {
    "trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "one trained whole": {"modules_to_save": ["embed_tokens"]},
    "of low rank": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "not trained": {},
}


@pytest.mark.parametrize("rows", [40, 28])
@pytest.mark.parametrize("kind", RESIZED)
def test_added_tokens_give_an_adapter_a_vocabulary_of_its_own(
    kind, rows, model_of, add_tokenizer, campaign, tmp_path
):
    model_of().save_pretrained(tmp_path / "base")
    add_tokenizer(tmp_path / "base", tokens=28)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(rows, mean_resizing=False)
    settings = {"r": 2, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"} | RESIZED[kind]
    tuned = get_peft_model(model, LoraConfig(**settings))
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    tuned.save_pretrained(tmp_path / "adapter")
    wanted = tuned.merge_and_unload().state_dict()

    models = check_models(campaign(tmp_path / "base", lora=tmp_path / "adapter"))
    base, adapter = models.sources.values()
    assert any(f"vocabulary of {rows} rows, 32 in the base" in note for note in models.notes)
    for name in adapter.names():
        assert adapter.read(name).shape == adapter.shape(name) == wanted[name].shape
        assert torch.equal(adapter.read(name), wanted[name]), name
        merged = with_base_rows(adapter, base, models.layout.tensor(name))
        assert merged.shape == base.shape(name)


def test_weights_of_a_base_of_another_size_are_named_with_both_shapes(
    family, model_of, campaign, tmp_path
):
    _, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    model_of(hidden_size=32).save_pretrained(tmp_path / "wide")
    message = r"lora_A\.weight has shape \[2, 16\], the base calls for \[2, 32\]; .*another base"
    with pytest.raises(InputError, match=message):
        open_models(campaign(tmp_path / "wide", lora=folder))


def test_an_adapter_for_a_base_is_refused(family, campaign):
    _, folder = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    with pytest.raises(InputError, match=r"models\.base: .*an adapter; only experts can be"):
        open_models(campaign(folder, lora=folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_holds_nan_or_infinity_is_refused_by_name(value, family, campaign):
    base, adapter = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(name for name in tensors if "lora_A" in name)][0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    kind = "NaN" if value != value else "infinity"
    message = rf"models\.experts\.tuned: model\.layers\.0\.self_attn\..*weight holds {kind}"
    with pytest.raises(InputError, match=message):
        check_models(campaign(base, tuned=adapter))


def test_a_value_head_beside_an_adapter_makes_it_no_whole_model(family, campaign):
    base, adapter = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    before = open_models(campaign(base, tuned=adapter))["tuned"].digest
    torch.save({"v_head.summary.weight": torch.zeros(1, 16)}, adapter / "pytorch_model.bin")
    found = open_models(campaign(base, tuned=adapter))["tuned"]
    assert isinstance(found, Adapter)
    assert found.digest == before


@pytest.mark.parametrize("wrapped", ["module.{}", "_orig_mod.{}", "base_model.model._orig_mod.{}"])
def test_the_prefixes_of_wrappers_are_taken_off_an_adapters_names(wrapped, family, campaign):
    base, adapter = family("llama", settings={"r": 2, "target_modules": ATTENTION})
    before = open_models(campaign(base, tuned=adapter))["tuned"].digest
    file, inside = adapter / "adapter_model.safetensors", wrapped.removesuffix("{}")
    cut = "base_model.model." if inside.startswith("base_model") else ""
    renamed = {f"{inside}{n.removeprefix(cut)}": t for n, t in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    assert open_models(campaign(base, tuned=adapter))["tuned"].digest == before
