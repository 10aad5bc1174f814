"""Language towers of vision-language models: merged alone, saved with the rest of the base."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaForCausalLM,
)

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, SpaceConfig, TokenizerConfig
from evomerge.export.folder import export_recipe
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.models.checks.checked_models import check_models
from evomerge.models.open_models import open_models
from evomerge.recipe import Recipe, Slot
from evomerge.search.spaces.weights import WeightSpace

TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
KINDS = {
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": 31,
    },
    "gemma3": {"text_config": {**TEXT, "head_dim": 8}, "vision_config": VISION},
}
QWEN = {
    "text_config": {
        **TEXT,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    },
    "vision_config": {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 4,
    },
}


def build(kind, seed, settings=None):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(settings or KINDS[kind]))
    model = AutoModelForImageTextToText.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture
def family(tmp_path, add_tokenizer):
    """kind -> folders: a base, a whole finetune of it, and a plain language model of its tower."""

    def make(kind):
        folders = {name: tmp_path / name for name in ("base", "whole", "plain")}
        for seed, name in enumerate(folders):
            model = build(kind, seed)
            if name == "plain":
                config = model.config.get_text_config(decoder=True)
                config.tie_word_embeddings = model.config.tie_word_embeddings
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(config)
            model.save_pretrained(folders[name])
            add_tokenizer(folders[name])
        return folders

    return make


def recipe_of(models, method="ties"):
    digests = {name: source.digest for name, source in models.sources.items()}
    config = SpaceConfig(weights={"method": method, "genes": {"weight": [0, 1.5]}})
    space = WeightSpace(config, models.layout, digests, seed=3)
    generator = torch.Generator().manual_seed(5)
    return space.decode(torch.rand(space.dimension, generator=generator).double().numpy())


def part(state, tower):
    return {n: t for n, t in state.items() if ("language_model" in n or "lm_head" in n) == tower}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_and_plain_ones_merge_into_the_tower_and_the_rest_is_the_bases(
    kind, family, campaign, tmp_path
):
    folders = family(kind)
    config = campaign(folders["base"], whole=folders["whole"], plain=folders["plain"])
    models = check_models(config)
    recipe = recipe_of(models)
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")

    merged, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    base = AutoModelForImageTextToText.from_pretrained(folders["base"]).state_dict()
    state = merged.state_dict()
    rest = part(state, tower=False)
    assert rest
    assert all(torch.equal(tensor, base[name]) for name, tensor in rest.items())

    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(recipe)
    scored = resident.model.state_dict()
    tower = part(state, tower=True)
    assert len(scored) == len(tower)
    for name, tensor in scored.items():
        own = name.replace("model.", "model.language_model.", 1)
        assert torch.equal(tensor, tower[own]), name
        assert not torch.equal(tensor, base[own]), name


def test_the_tower_answers_as_the_whole_model_does_on_text(family, campaign):
    folders = family("llava")
    models = check_models(campaign(folders["base"], plain=folders["plain"]))
    path = [Slot(source="base", layer=layer) for layer in range(models.layout.layers)]
    digests = {name: source.digest for name, source in models.sources.items()}
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(Recipe(sources=digests, path=path))
    whole = AutoModelForImageTextToText.from_pretrained(folders["base"]).eval()
    tokens = torch.tensor([[1, 5, 9, 4]])
    with torch.no_grad():
        ours, theirs = resident.model(tokens).logits, whole(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_rest_of_a_model_counts_in_its_digest(family, campaign):
    folders = family("llava")
    config = campaign(folders["base"], plain=folders["plain"])
    before = open_models(config)["base"]
    path = folders["base"] / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    next(tensor for name, tensor in tensors.items() if "vision_tower" in name).add_(1)
    save_file(tensors, path, {"format": "pt"})
    after = open_models(config)["base"]
    assert after.digest != before.digest
    assert after.tensor_digests == before.tensor_digests
    assert pickle.loads(pickle.dumps(after)).digest == after.digest


def test_a_tower_of_another_shape_is_refused(family, campaign, tmp_path, add_tokenizer):
    folders = family("llava")
    wide = {**TEXT, "intermediate_size": 32}
    LlamaForCausalLM(AutoConfig.for_model("llama", **wide)).save_pretrained(tmp_path / "wide")
    add_tokenizer(tmp_path / "wide")
    with pytest.raises(InputError, match=r"models\.experts\.wide: .* has shape \[32, 16\]"):
        check_models(campaign(folders["base"], wide=tmp_path / "wide"))


def test_a_path_through_a_tower_cannot_be_exported(family, campaign, tmp_path):
    folders = family("llava")
    config = campaign(folders["base"], plain=folders["plain"])
    models = check_models(config)
    digests = {name: source.digest for name, source in models.sources.items()}
    recipe = Recipe(sources=digests, path=[Slot(source="plain", layer=1)])
    with pytest.raises(InputError, match="multimodal model keep their order and number"):
        export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")


def test_a_tower_that_is_no_language_model_of_its_own_is_refused_by_name(tmp_path, campaign):
    build("qwen2_vl", 0, QWEN).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"models\.base: the text model inside Qwen2VL"):
        open_models(campaign(tmp_path, other=tmp_path))


@pytest.mark.parametrize("kind", list(KINDS)[:2])
def test_a_matched_vocabulary_is_that_of_the_whole_model(
    kind, family, campaign, tmp_path, monkeypatch
):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    folders = family(kind)
    config = campaign(folders["base"], whole=folders["whole"], plain=folders["plain"])
    tokenizer = TokenizerConfig(source="base", pad_to_multiple_of=48)
    models = check_models(config.model_copy(update={"tokenizer": tokenizer}))
    rows = models.layout.vocab_size
    assert rows % 48 == 0
    recipe = recipe_of(models)
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")
    merged, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert merged.get_input_embeddings().weight.shape[0] == rows
