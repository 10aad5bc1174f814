"""A calibration file is the same whatever happened on the way, and never replaces another."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from evomerge.common.errors import InputError
from evomerge.fitness.calibration import backward_pass
from evomerge.fitness.calibration.calibrate import Calibration, calibrate
from evomerge.fitness.calibration.layered_model import LayeredModel
from evomerge.fitness.calibration.texts import Text, sample
from evomerge.models.files.calibration_file import open_calibration
from evomerge.models.open_models import open_model

KINDS = ("fisher", "gram", "mean_abs", "gtheta", "sens", "cross")
TEXTS = [Text(" ".join(tiny.WORDS[i : i + 9]), f"texts.jsonl, line {i + 1}") for i in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_family(tmp_path_factory.mktemp("models"), experts=("math",))["base"]


def written(model, target, threads=1, kinds=KINDS, texts=TEXTS, told=lambda _: None):
    source, together = open_model(str(model)), []
    if "cross" in kinds:
        together = [open_model(str(model.parent / "math")), source]
    asked = Calibration("models.experts.math", texts, kinds, 8, threads, together=together)
    return calibrate(source, asked, target, told=told)


def test_the_file_says_what_it_is_made_of(model, tmp_path):
    file = open_calibration(written(model, tmp_path / "a.safetensors"))
    source = open_model(str(model))
    assert file.head.source == source.digest
    assert (file.head.samples, file.head.tokens, file.head.max_tokens) == (12, 96, 8)
    assert file.head.kinds == tuple(sorted(KINDS))
    assert file.names("fisher") == tuple(sorted(source.names()))
    layer = "model.layers.0.self_attn."
    gram = file.read("gram", f"{layer}k_proj.weight")
    assert torch.equal(gram, file.tensors[f"gram/{layer}q_proj.weight"])
    assert file.head.together == (open_model(str(model.parent / "math")).digest, source.digest)
    assert file.read("cross", f"{layer}v_proj.weight").shape == gram.shape
    assert file.read("gtheta", "lm_head.weight").shape == (8, 64, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_threads_give_the_same_file(model, tmp_path):
    one = written(model, tmp_path / "one.safetensors", threads=1)
    two = written(model, tmp_path / "two.safetensors", threads=2)
    assert one.read_bytes() == two.read_bytes()


class _Killed(BaseException):
    """Ends the process of a test, nearly."""


def _killing(after):
    told = []

    def kill(text):
        told.append(text)
        if len(told) == after:
            raise _Killed

    return kill


def test_a_process_that_is_killed_goes_on_where_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(backward_pass, "STATES", 0)  # two groups of texts
    whole = written(model, tmp_path / "whole.safetensors")
    loaded: list[int] = []
    load = LayeredModel.loaded

    def counted(self, layer):
        loaded.append(layer)
        return load(self, layer)

    monkeypatch.setattr(LayeredModel, "loaded", counted)
    written(model, tmp_path / "counted.safetensors")
    undisturbed, steps = len(loaded), 0
    loaded.clear()
    target = tmp_path / "killed.safetensors"
    while not target.exists():
        try:
            written(model, target, told=_killing(after=2))
        except _Killed:
            steps += 1
    assert steps > 3
    assert target.read_bytes() == whole.read_bytes()
    tried = steps * 4  # each process tries the two layers of both models first
    assert len(loaded) == undisturbed + tried


def test_another_file_is_not_overwritten(model, tmp_path):
    target = written(model, tmp_path / "a.safetensors", kinds=["mean_abs"])
    assert written(model, target, kinds=["mean_abs"]) == target
    with pytest.raises(InputError, match="exists, and was made with other documents"):
        written(model, target, kinds=["mean_abs"], texts=TEXTS[:5])
    with pytest.raises(InputError, match="exists without gram"):
        written(model, target, kinds=["gram"])


def test_a_model_whose_activations_overflow_is_named_with_the_tensor(model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e30
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    named = r"models.experts.math: the gram of model.layers.1.mlp.down_proj.weight holds inf"
    with pytest.raises(InputError, match=named):
        written(folder, tmp_path / "a.safetensors", kinds=["gram"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_sample_is_the_same_whatever_the_order_of_the_lines():
    chosen = sample(TEXTS, 5)
    assert chosen == sample([*reversed(TEXTS), *TEXTS], 5)
    more = sample([*TEXTS, Text("one more", "line 13")], 5)
    assert len({*more} - {*chosen}) <= 1
