"""Stored names: those of wrappers and value heads are understood; what does not fit is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.checks.checked_models import check_models


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path, {"format": "pt"})


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        prefixed("_orig_mod."),
        prefixed("module."),
        prefixed("module._orig_mod."),
        prefixed("pretrained_model."),
        prefixed("base_model.model."),
        prefixed("policy.network."),
        prefixed("model.module."),
        prefixed("_orig_mod.module."),
        prefixed("module.model."),
        lambda tensors: {n.replace("model.", "model.module."): t for n, t in tensors.items()},
        lambda tensors: {
            name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.").replace(
                "model.layers.1.", "model.layers.1._fsdp_wrapped_module."
            ): tensor
            for name, tensor in tensors.items()
        },
    ],
)
def test_the_prefixes_of_wrappers_are_taken_off(change, saved):
    plain = open_checkpoint("base", str(saved("plain"))).digest
    folder = saved("wrapped")
    rewrite(folder, change)
    assert open_checkpoint("base", str(folder)).digest == plain


def test_a_tensor_stored_with_and_without_a_prefix_is_refused(saved):
    folder = saved("a")
    rewrite(folder, lambda t: {**t, "_orig_mod.model.norm.weight": t["model.norm.weight"]})
    with pytest.raises(InputError, match=r"model\.norm\.weight is stored twice, once as _orig_mod"):
        open_checkpoint("base", str(folder))


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "qwen2"])
@pytest.mark.parametrize("prefix", ["model.module.", "_orig_mod.module.", "student."])
def test_prefixes_are_taken_off_whatever_the_model(kind, prefix, model_of, tmp_path):
    model_of(kind).save_pretrained(tmp_path)
    plain = open_checkpoint("base", str(tmp_path)).digest
    rewrite(tmp_path, prefixed(prefix))
    assert open_checkpoint("base", str(tmp_path)).digest == plain


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_a_value_head_is_left_out_and_told(prefix, saved, campaign):
    base, expert = saved("b"), saved("m", seed=1)
    before = open_checkpoint("math", str(expert)).digest
    head = {"v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}
    rewrite(expert, lambda tensors: {**prefixed(prefix)(tensors), **head})
    found = check_models(campaign(base, math=expert))
    assert found.sources["math"].digest == before
    [note] = found.notes
    assert note.startswith("models.experts.math: v_head.summary.bias, v_head.summary.weight left")


@pytest.mark.parametrize(
    "name",
    ["v_head.weight", "model.v_head.0.bias", "value_head.out.weight", "critic.weight"],
)
def test_a_head_of_another_kind_is_left_out_of_the_base_too(name, saved, campaign):
    base, expert = saved("b"), saved("m", seed=1)
    rewrite(base, lambda tensors: {**tensors, name: torch.ones(1)})
    [note] = check_models(campaign(base, math=expert)).notes
    assert note.startswith(f"models.base: {name} left out")


def test_another_unexpected_tensor_is_refused_with_the_way_out(saved):
    folder = saved("a")
    rewrite(folder, lambda tensors: {**tensors, "model.gate.weight": torch.ones(1)})
    with pytest.raises(InputError, match=r"unexpected tensor model\.gate\.weight; .*remove it"):
        open_checkpoint("math", str(folder))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_model_without_a_head_is_called_a_backbone(prefix, saved, edit_config):
    folder = saved("a")
    edit_config(folder, architectures=["LlamaModel"])
    rewrite(
        folder,
        lambda tensors: {
            f"{prefix}{name.removeprefix('model.')}": tensor
            for name, tensor in tensors.items()
            if name != "lm_head.weight"
        },
    )
    message = r"a backbone without a language-model head: lm_head\.weight .*saved as LlamaModel\)"
    with pytest.raises(InputError, match=message):
        open_checkpoint("math", str(folder))


HEADS = {"gpt_neox": "embed_out", "qwen2": "lm_head", "phi": "lm_head"}


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_a_backbone_of_another_architecture_is_called_so(kind, bare, model_of, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    prefix = f"{model.base_model_prefix}."
    rewrite(
        tmp_path,
        lambda tensors: {
            n.removeprefix(prefix) if bare else n: t
            for n, t in tensors.items()
            if not n.startswith(HEADS[kind])
        },
    )
    message = rf"a backbone without a language-model head: .* give the {type(model).__name__} it is"
    with pytest.raises(InputError, match=message):
        open_checkpoint("math", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "key"),
    [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("gpt_neox", "num_hidden_layers")],
)
@pytest.mark.parametrize("layers", [2, 5])
def test_a_stale_number_of_layers_says_both(kind, key, layers, model_of, tmp_path):
    model_of(kind).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: layers, "layer_types": None}))
    message = rf"config\.json says {layers} layers \({key}\), but the weights have 3 .*to 3,"
    with pytest.raises(InputError, match=message):
        open_checkpoint("math", str(tmp_path))


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_a_stale_number_of_layers_that_have_types_says_both(kind, layers, model_of, tmp_path):
    model_of(kind).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    message = rf"says {layers} layers .*has a type for 3 .*; the weights have 3; give both"
    with pytest.raises(InputError, match=message):
        open_checkpoint("math", str(tmp_path))


def packed(tensors):
    return {n: t.to(torch.uint8) if "proj" in n else t for n, t in tensors.items()}


def scaled(tensors):
    scales = {f"{n}_scale_inv": torch.ones(1) for n in tensors if "proj" in n}
    return {n: t.to(torch.float8_e4m3fn) if "proj" in n else t for n, t in tensors.items()} | scales


def apart(tensors):
    """Each matrix as three packed tensors under names of their own."""
    kept = {n: t for n, t in tensors.items() if "proj" not in n}
    parts = ("qweight", "qzeros", "scales")
    names = [n.removesuffix("weight") for n in tensors if "proj" in n]
    return kept | {f"{name}{part}": torch.zeros(2, 2) for name in names for part in parts}


@pytest.mark.parametrize(
    ("config", "change", "told"),
    [
        ({"quant_method": "fp8"}, scaled, r"quantized \(fp8\)"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            packed,
            r"quantized \(bitsandbytes, 4 bits\)",
        ),
        ({"quant_method": "gptq", "bits": 3}, packed, r"quantized \(gptq, 3 bits\)"),
        ({"quant_method": "awq", "bits": 4}, apart, r"quantized \(awq, 4 bits\)"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            packed,
            r"quantized \(bitsandbytes, 8 bits\)",
        ),
        ({"quant_method": "compressed-tensors"}, apart, r"quantized \(compressed-tensors\)"),
    ],
)
def test_quantized_weights_are_called_what_the_config_says(
    config, change, told, saved, edit_config
):
    folder = saved("a")
    edit_config(folder, quantization_config=config)
    rewrite(folder, change)
    with pytest.raises(InputError, match=rf"models\.experts\.math: .*{told}, as its config"):
        open_checkpoint("math", str(folder))


def test_plain_weights_are_read_and_saved_without_a_stale_quantization(saved, edit_config):
    folder = saved("a")
    edit_config(folder, quantization_config={"quant_method": "fp8"})
    source = open_checkpoint("base", str(folder))
    assert not hasattr(source.config_to_save(), "quantization_config")
