"""The Fisher information is the mean over texts of squared gradients, each text's by itself."""

from __future__ import annotations

import pytest
import torch
from calibrating import gradients_of, layered, saved, texts
from families import FAMILIES
from mixtures import mixture
from transformers import LlamaForCausalLM

from evomerge.fitness.calibration import backward_pass
from evomerge.fitness.calibration.backward_pass import take_gradients
from evomerge.fitness.calibration.work_folder import WorkFolder

KINDS = ("fisher", "gtheta", "sens")


def tied_llama():
    config = FAMILIES["llama"]().config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


MODELS = {
    "llama": FAMILIES["llama"],
    "tied llama": tied_llama,
    "qwen3": FAMILIES["qwen3"],
    "gpt2": FAMILIES["gpt2"],
    "mixture": mixture,
}


def taken(folder, given, work, kinds=KINDS, threads=2):
    work.mkdir()
    model = layered(folder, given)
    return take_gradients(model, given, kinds, WorkFolder(work), threads, lambda _: None)


@pytest.mark.parametrize("name", MODELS)
def test_fisher_is_the_mean_of_each_texts_squared_gradient(name, tmp_path, monkeypatch):
    monkeypatch.setattr(backward_pass, "SINGLE", 2)
    monkeypatch.setattr(backward_pass, "STATES", 0)  # groups of two texts
    given = texts()
    model, folder = saved(MODELS[name](), tmp_path / "model")
    found = taken(folder, given, tmp_path / "work")
    each = [gradients_of(model, text) for text in given]
    weights = dict(model.named_parameters())
    assert found.keys() == {f"{kind}/{n}" for n in weights for kind in KINDS}
    for tensor, weight in weights.items():
        squares = torch.stack([one[tensor].double() ** 2 for one in each]).mean(0).float()
        scale = float(squares.max())
        torch.testing.assert_close(
            found[f"fisher/{tensor}"], squares, rtol=1e-3, atol=1e-5 * scale + 1e-12
        )
        sums = [(one[tensor] * weight.detach()).abs().double().sum() for one in each]
        sensitivity = torch.stack(sums).mean().reshape(1)
        torch.testing.assert_close(found[f"sens/{tensor}"], sensitivity, rtol=1e-3, atol=1e-9)
        single = torch.stack([one[tensor] * weight.detach() for one in each[:2]])
        scale = float(single.abs().max())
        torch.testing.assert_close(
            found[f"gtheta/{tensor}"], single, rtol=1e-3, atol=1e-4 * scale + 1e-9
        )


def test_neither_threads_nor_groups_change_a_byte(tmp_path, monkeypatch):
    given = texts((24,) * 9)
    _, folder = saved("llama", tmp_path / "model")
    one = taken(folder, given, tmp_path / "one", threads=1)
    monkeypatch.setattr(backward_pass, "STATES", 0)
    two = taken(folder, given, tmp_path / "two", threads=2)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
