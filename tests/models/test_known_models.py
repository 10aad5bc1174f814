"""A model that was opened before is opened again without transformers, and the same."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.models import checkpoint
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.known_models import recall_model

FLAGS = {"allow_pickle": False, "trust_remote_code": False}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def without_transformers(monkeypatch):
    """() -> from now on no skeleton is built and no config loaded."""

    def forbid():
        def refuse(*_, **__):
            raise AssertionError("transformers was asked")

        monkeypatch.setattr(checkpoint, "build_skeleton", refuse)
        monkeypatch.setattr(checkpoint, "load_config", refuse)

    return forbid


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_a_known_model_has_the_same_layout_tensors_and_pieces(
    tmp_path, model_of, without_transformers, kind
):
    model_of(kind).save_pretrained(tmp_path / "m")
    first = open_checkpoint("base", str(tmp_path / "m"))
    parts = {name: first.read(name) for name in first.names()}
    saved, digest = first.as_saved(parts), first.digest
    without_transformers()
    again = open_checkpoint("base", str(tmp_path / "m"))
    assert again.layout == first.layout
    assert again.left_out == first.left_out
    assert again.digest == digest
    assert all(torch.equal(again.read(name), parts[name]) for name in first.names())
    found = again.as_saved({name: again.read(name) for name in again.names()})
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_another_config_or_another_tensor_is_looked_at_anew(saved, edit_config):
    folder = saved("m")
    open_checkpoint("base", str(folder))
    assert recall_model(folder, FLAGS) is not None
    edit_config(folder, rope_theta=5.0)
    assert recall_model(folder, FLAGS) is None
    open_checkpoint("base", str(folder))
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert recall_model(folder, FLAGS) is None


def test_stored_copies_of_tied_tensors_are_compared_every_time(saved):
    folder = saved("m", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    open_checkpoint("base", str(folder))
    assert recall_model(folder, FLAGS) is None


def test_nothing_is_remembered_of_models_with_code_of_their_own(saved):
    folder = saved("m")
    open_checkpoint("base", str(folder), trust_remote_code=True)
    assert recall_model(folder, FLAGS) is None


def test_a_second_merge_of_like_models_imports_no_transformers(saved, tmp_path):
    file = tmp_path / "merge.yaml"
    models = [{"model": str(saved(name, seed))} for seed, name in enumerate(("one", "two"), 1)]
    base = str(saved("base"))
    file.write_text(
        json.dumps(
            {
                "merge_method": "task_arithmetic",
                "base_model": base,
                "models": [{**m, "parameters": {"weight": 0.5}} for m in models],
            }
        )
    )
    from evomerge.export.merge import merge_file

    merge_file(file, tmp_path / "first", {}, None)
    script = (
        "import sys; sys.argv[1:] = ['merge', *sys.argv[1:]]\n"
        "from evomerge.cli import app\n"
        "app(standalone_mode=False)\n"
        "heavy = {'transformers', 'scipy', 'lm_eval', 'optuna', 'ray', 'datasets', 'peft'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", script, str(file), "--to", str(tmp_path / "second")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
    for path in (tmp_path / "first").iterdir():
        if path.suffix != ".md":  # its title is the folder's name
            assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes(), path.name
