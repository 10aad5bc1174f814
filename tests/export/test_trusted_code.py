"""A model whose code comes with its checkpoint, run because the user said so."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, dynamic_module_utils

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.export.folder import export_recipe
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.models import path_config
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import Recipe, Slot

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def family(tmp_path, monkeypatch):
    """The tiny family as an architecture of its own, with the code beside the weights."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folders = tiny.save_family(tmp_path / "models")
    for folder in folders.values():
        (folder / "own.py").write_text(CODE)
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "own",
            "architectures": ["OwnForCausalLM"],
            "auto_map": {
                "AutoConfig": "own.OwnConfig",
                "AutoModelForCausalLM": "own.OwnForCausalLM",
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
    return folders


def models_config(folders, trusted):
    return ModelsConfig(
        base=str(folders["base"]),
        experts={"math": str(folders["math"])},
        trust_remote_code=trusted,
    )


def test_a_deeper_model_of_trusted_code_is_exported_and_loads(family, tmp_path, monkeypatch):
    config = models_config(family, trusted=True)
    models = check_models(config)
    recipe = Recipe(
        sources={name: source.digest for name, source in models.sources.items()},
        path=[Slot(source=s, layer=n) for s, n in (("base", 0), ("math", 0), ("base", 1))],
    )
    # transformers forgives a build without the flag once a class is known to the process.
    build, trusted = path_config.build_skeleton, []
    monkeypatch.setattr(
        path_config, "build_skeleton", lambda c, **flags: trusted.append(flags) or build(c, **flags)
    )
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")
    assert trusted
    assert all(flags == {"trust_remote_code": True} for flags in trusted)
    loaded = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"
    layers = [layer.mlp.up_proj.weight for layer in loaded.model.layers]
    stored = {n: load_file(family[n] / "model.safetensors") for n in ("base", "math")}
    for weight, (name, layer) in zip(layers, [("base", 0), ("math", 0), ("base", 1)], strict=True):
        assert torch.equal(weight, stored[name][f"model.layers.{layer}.mlp.up_proj.weight"])


def test_code_is_not_run_unless_it_is_trusted(family):
    with pytest.raises(InputError, match="contains custom code"):
        check_models(models_config(family, trusted=False))
