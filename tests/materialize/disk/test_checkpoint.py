"""Folders that transformers loads, written whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from merged_bytes import assert_same_bytes, open_family, streamed_bytes
from safetensors import SafetensorError
from some_recipes import some_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.materialize.disk import stream
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.models.checks.checked_models import check_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"))


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


def test_shards_hold_the_same_tensors_as_one_file(models, tmp_path):
    recipe = some_recipe(models)
    whole = streamed_bytes(models, recipe, tmp_path / "one")
    sharded = streamed_bytes(models, recipe, tmp_path / "many", shard_bytes=9_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert_same_bytes(sharded, whole)
