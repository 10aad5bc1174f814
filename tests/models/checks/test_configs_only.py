"""Models of which only the config is here."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from evomerge.common.errors import InputError
from evomerge.config import ModelsConfig
from evomerge.models.checks.checked_models import check_models
from evomerge.models.checks.configs_only import check_configs_only


@pytest.fixture
def configs(tmp_path):
    """Folders of config files alone."""
    for name in ("base", "math", "lang"):
        tiny.llama_config(dtype=torch.bfloat16).save_pretrained(tmp_path / name)
        tiny.save_tokenizer(tmp_path / name)
    return tmp_path


def models_in(folder, **experts):
    named = experts or {name: str(folder / name) for name in ("math", "lang")}
    return ModelsConfig(base=str(folder / "base"), experts=named)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_layouts_and_dtypes_are_those_of_the_models_with_weights(configs, tmp_path):
    found = check_configs_only(models_in(configs))
    tiny.save_family(tmp_path / "real", dtype=torch.bfloat16)
    real = check_models(models_in(tmp_path / "real"))
    assert found.configs_only
    assert found.layout == real.layout
    for name, source in real.sources.items():
        theirs = found.sources[name]
        assert [theirs.dtype(n) for n in theirs.names()] == [
            source.dtype(n) for n in source.names()
        ]
    assert "no weights are here" in found.notes[0]


def test_one_model_with_weights_is_enough_to_read_them_all(configs, tmp_path):
    tiny.save_family(tmp_path / "real", ("math",))
    mixed = ModelsConfig(
        base=str(tmp_path / "real" / "base"), experts={"lang": str(configs / "lang")}
    )
    assert check_configs_only(mixed) is None


def test_what_is_nowhere_is_left_to_those_who_read(configs):
    assert check_configs_only(models_in(configs, math=str(configs / "gone"))) is None


def test_a_hub_id_that_is_not_here_is_refused_with_its_name(configs):
    with pytest.raises(InputError, match=r"models\.experts\.math: org/gone: not a folder here"):
        check_configs_only(models_in(configs, math="org/gone"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but 2"),
        ({"intermediate_size": 40}, r"gate_proj\.weight has shape \[40, 32\], but \[48, 32\]"),
        ({"num_attention_heads": 0}, "config.json: transformers refuses it|cannot build"),
    ],
)
def test_configs_that_do_not_fit_are_refused(configs, changes, message):
    edit(configs / "math", **changes)
    with pytest.raises(InputError, match=rf"models\.experts\.math: .*({message})"):
        check_configs_only(models_in(configs))


def test_other_tokenizers_are_refused_and_a_missing_one_is_told(configs):
    for file in (configs / "base").glob("tokenizer*"):
        file.unlink()
    notes = check_configs_only(models_in(configs)).notes
    assert any("models.base: no tokenizer" in note for note in notes)


def test_an_adapter_has_the_bases_shapes(configs):
    adapter = configs / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    found = check_configs_only(models_in(configs, tuned=str(adapter)))
    assert found.sources["tuned"].layout == found.layout


def test_quantized_weights_are_told_before_they_are_downloaded(configs):
    edit(configs / "math", quantization_config={"quant_method": "awq", "bits": 4})
    notes = check_configs_only(models_in(configs)).notes
    assert any("models.experts.math: quantized (awq, 4 bits), as" in note for note in notes)


def test_reading_such_a_model_is_refused_with_the_way_out(configs):
    source = check_configs_only(models_in(configs)).sources["math"]
    for read in (lambda: source.read("lm_head.weight"), lambda: source.tensor_digests):
        with pytest.raises(InputError, match=r"experts\.math: only its config .*download"):
            read()
