import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.layout import GROUPS, build_skeleton, derive_layout, layout_of

PREFIXES = {
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
    "gemma": "model.layers",
    "gemma2": "model.layers",
    "gemma3_text": "model.layers",
    "phi": "model.layers",
    "olmo": "model.layers",
    "olmo2": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
}
TIED = {"gemma", "gemma2", "gemma3_text", "gpt2"}


@pytest.mark.parametrize("kind", PREFIXES)
def test_every_tensor_of_a_saved_model_is_placed_and_opens_to_the_same_bytes(
    kind, model_of, tmp_path
):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint("base", str(tmp_path))
    layout, state = checkpoint.layout, model.state_dict()

    assert layout.prefix == PREFIXES[kind]
    assert layout.layers == 3
    assert {*layout.names, *layout.tied} == set(state)
    assert [name for name in state if name in layout.names] == list(layout.names)
    for name, tensor in state.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).dtype == tensor.dtype
    for spec in layout.tensors:
        assert spec.shape == tuple(state[spec.name].shape)
        assert spec.group in (GROUPS if spec.layer is None else ("attention", "mlp", "norms"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(reloaded[name], checkpoint.read(name)) for name in state)


@pytest.mark.parametrize("kind", PREFIXES)
def test_layers_hold_the_same_suffixes_and_together_all_numbered_tensors(kind, config_of):
    layout = derive_layout(config_of(kind))
    layers = [{spec.suffix for spec in layout.tensors_of_layer(i)} for i in range(3)]
    assert layers[0] == layers[1] == layers[2]
    for spec in layout.tensors_of_layer(1):
        assert spec.name == f"{layout.prefix}.1.{spec.suffix}"
        assert layout.tensor(spec.name).layer == 1
    numbered = [spec.name for i in range(3) for spec in layout.tensors_of_layer(i)]
    assert sorted(numbered) == sorted(s.name for s in layout.tensors if s.layer is not None)


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_tied_head_is_no_group_and_no_tensor(kind, config_of):
    layout = derive_layout(config_of(kind))
    assert (kind in TIED) == bool(layout.tied)
    assert ("head" in layout.outside_groups) == (kind not in TIED)
    assert all(name not in layout.names for name in layout.tied)
    for name, target in layout.tied.items():
        assert layout.tensor(name) is layout.tensor(target)


@pytest.mark.parametrize(
    ("kind", "name", "group"),
    [
        ("llama", "model.layers.0.post_attention_layernorm.weight", "norms"),
        ("llama", "model.layers.0.self_attn.q_proj.weight", "attention"),
        ("llama", "model.layers.0.mlp.down_proj.weight", "mlp"),
        ("llama", "model.norm.weight", "final_norm"),
        ("llama", "model.embed_tokens.weight", "embeddings"),
        ("llama", "lm_head.weight", "head"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight", "attention"),
        ("gemma2", "model.layers.0.pre_feedforward_layernorm.weight", "norms"),
        ("phi", "lm_head.bias", "head"),
        ("phi", "model.final_layernorm.bias", "final_norm"),
        ("gpt2", "transformer.h.0.ln_2.bias", "norms"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", "attention"),
        ("gpt2", "transformer.wpe.weight", "embeddings"),
        ("gpt2", "transformer.ln_f.weight", "final_norm"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", "attention"),
    ],
)
def test_groups_are_what_people_call_them(kind, name, group, config_of):
    assert derive_layout(config_of(kind)).tensor(name).group == group


def test_the_vocabulary_is_dimension_zero_of_embeddings_head_and_head_bias_only(config_of):
    layout = derive_layout(config_of("phi"))
    counting = {spec.name for spec in layout.tensors if spec.vocab_dim == 0}
    assert counting == {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"}
    assert layout.vocab_size == 32
    positions = derive_layout(config_of("gpt2", n_positions=32)).tensor("transformer.wpe.weight")
    assert positions.vocab_dim is None


def test_modules_names_the_groups_that_occur(config_of):
    assert derive_layout(config_of("llama")).modules == ("attention", "mlp", "norms")
    assert derive_layout(config_of("olmo")).modules == ("attention", "mlp")
    assert derive_layout(config_of("olmo")).outside_groups == ("embeddings", "head")


def test_an_unknown_tensor_or_layer_is_refused_by_name(config_of):
    layout = derive_layout(config_of("llama"))
    with pytest.raises(InputError, match=r"model\.nrom\.weight"):
        layout.tensor("model.nrom.weight")
    with pytest.raises(InputError, match=r"layer 3.*0 to 2"):
        layout.tensors_of_layer(3)


def test_deriving_a_layout_allocates_nothing_and_leaves_the_config_alone(config_of):
    config = config_of("llama", hidden_size=65536, intermediate_size=262144, vocab_size=500000)
    before = config.to_dict()
    assert derive_layout(config).vocab_size == 500000  # 130 GB, were it allocated
    assert config.to_dict() == before


def test_a_model_that_is_no_decoder_is_refused(config_of):
    with pytest.raises(InputError, match="cannot build a decoder"):
        derive_layout(config_of("vit"))


def test_two_numbered_lists_are_refused(config_of):
    text = config_of("gemma3_text").to_dict()
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(InputError, match=r"one numbered list; found .*language_model.*vision"):
        derive_layout(AutoConfig.for_model("gemma3", text_config=text, vision_config=tower))


def test_a_list_numbered_otherwise_than_the_config_says_is_refused(config_of):
    model = build_skeleton(config_of("llama"))
    del model.model.layers[2]
    with pytest.raises(InputError, match=r"model\.layers is numbered 0 to 1.*names 3 layers"):
        layout_of(model)


def test_layout_alone_imports_neither_torch_nor_transformers():
    code = (
        "import sys, evomerge.models.layout; "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
