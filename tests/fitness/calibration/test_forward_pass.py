"""Gram matrices and magnitudes are those of the inputs that transformers' own model meets."""

from __future__ import annotations

import pytest
import torch
from calibrating import inputs_of, is_matrix, layered, saved, texts
from mixtures import mixture

from evomerge.common.errors import InputError
from evomerge.fitness.calibration import forward_pass
from evomerge.fitness.calibration.forward_pass import (
    check_finite,
    check_inputs,
    take_inputs,
    without_inputs,
)
from evomerge.fitness.calibration.work_folder import WorkFolder
from evomerge.models.open_models import open_model


def taken(folder, given, work, kinds=("gram", "mean_abs"), threads=2):
    work.mkdir()
    model = layered(folder, given)
    return take_inputs(model, given, kinds, WorkFolder(work), threads, lambda _: None)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_statistics_are_those_of_the_inputs_that_hooks_see(family, tmp_path, monkeypatch):
    monkeypatch.setattr(forward_pass, "ROWS", 20)  # several units
    monkeypatch.setattr(forward_pass, "COLUMNS", 20)  # blocks that do not divide the matrix
    given = texts()
    model, folder = saved(family, tmp_path / "model")
    found, shared = taken(folder, given, tmp_path / "work")
    inputs, prefix = inputs_of(model, given), "h." if family == "gpt2" else "layers."
    tied = {"lm_head"} if model.config.tie_word_embeddings else set()
    assert {k for k in found if k.startswith("mean_abs/")} == {
        f"mean_abs/{name}.weight" for name in inputs.keys() - tied
    }
    for name, x in inputs.items():
        weight = f"{name}.weight"
        if name not in tied:
            torch.testing.assert_close(found[f"mean_abs/{weight}"], x.abs().mean(0))
        if prefix in name and is_matrix(model.get_submodule(name)):
            gram = found[f"gram/{shared.get(weight, weight)}"]
            expected = (x.double().T @ x.double() / len(x)).float()
            torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(gram, gram.T)


def test_matrices_that_read_one_input_share_its_gram(tmp_path):
    given = texts()
    _, folder = saved("llama", tmp_path / "model")
    found, shared = taken(folder, given, tmp_path / "work")
    layer = "model.layers.1."
    assert {k: v for k, v in shared.items() if k.startswith(layer)} == {
        f"{layer}self_attn.k_proj.weight": f"{layer}self_attn.q_proj.weight",
        f"{layer}self_attn.v_proj.weight": f"{layer}self_attn.q_proj.weight",
        f"{layer}mlp.up_proj.weight": f"{layer}mlp.gate_proj.weight",
    }
    grams = [key for key in found if key.startswith(f"gram/{layer}")]
    assert len(grams) == 4  # of q, o, gate and down
    assert not any("lm_head" in key for key in found if key.startswith("gram/"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_models_that_run_side_by_side_are_crossed_with_their_mean(family, tmp_path, monkeypatch):
    monkeypatch.setattr(forward_pass, "ROWS", 20)  # several units
    given = texts()
    own, folder = saved(family, tmp_path / "own")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other, beside = saved(type(own)(own.config).eval(), tmp_path / "other")
    models = [layered(place, given) for place in (beside, folder)]
    found, shared = {}, {}
    for threads in (1, 3):
        work = WorkFolder(tmp_path / f"{threads}")
        work.folder.mkdir()
        kinds = ("gram", "cross")
        taken, shared = take_inputs(models[1], given, kinds, work, threads, lambda _: None, models)
        assert not found or all(torch.equal(found[key], taken[key]) for key in taken)
        found = {key: value.clone() for key, value in taken.items()}
    ours, theirs = inputs_of(own, given), inputs_of(other, given)
    for name, x in ours.items():
        if name == "lm_head" or not is_matrix(own.get_submodule(name)):
            continue
        weight = shared.get(f"{name}.weight", f"{name}.weight")
        mean = (x.double() + theirs[name].double()) / 2
        expected = (x.double().T @ mean / len(x)).float()
        torch.testing.assert_close(found[f"cross/{weight}"], expected, rtol=1e-4, atol=1e-4)
    assert len([k for k in found if k[:5] == "cross"]) == len([k for k in found if k[:4] == "gram"])


def test_the_number_of_threads_does_not_change_a_byte(tmp_path):
    given = texts((24,) * 12)
    _, folder = saved("llama", tmp_path / "model")
    one, _ = taken(folder, given, tmp_path / "one", threads=1)
    three, _ = taken(folder, given, tmp_path / "three", threads=3)
    assert one.keys() == three.keys()
    assert all(torch.equal(one[key], three[key]) for key in one)


def test_what_is_not_finite_is_named():
    with pytest.raises(InputError, match=r"models.experts.math: the gram of h.0.weight holds inf"):
        check_finite("models.experts.math", {"gram/h.0.weight": torch.tensor([1.0, torch.inf])})


def test_a_mixtures_attention_has_grams_and_its_stacked_experts_none(tmp_path):
    given = texts()
    model, folder = saved(mixture(), tmp_path / "model")
    found, _ = taken(folder, given, tmp_path / "work")
    assert not any("experts" in key for key in found)
    assert any(key.startswith("mean_abs/model.layers.0.mlp.gate") for key in found)
    name = "model.layers.1.self_attn.o_proj"
    x = inputs_of(model, given)[name].double()
    expected = (x.T @ x / len(x)).float()
    torch.testing.assert_close(found[f"gram/{name}.weight"], expected, rtol=1e-5, atol=1e-5)
    layout = open_model(str(folder)).layout
    assert without_inputs(layout) == "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_router_statistics_are_those_that_hooks_see(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(forward_pass, "ROWS", 20)  # several units
    given = texts()
    model, folder = saved(mixture(kind), tmp_path / "model")
    found, _ = taken(folder, given, tmp_path / "work", kinds=("router",))
    again, _ = taken(folder, given, tmp_path / "again", kinds=("router",), threads=1)
    layers = [i for i, one in enumerate(model.model.layers) if hasattr(one.mlp, "gate")]
    assert [*found] == [f"router/model.layers.{i}.mlp.gate.weight" for i in layers]
    for index in layers:
        logits, chosen = [], []
        gate = model.model.layers[index].mlp.gate

        def keep(_, args, out, logits=logits, chosen=chosen):
            logits.append(out[0])
            chosen.append(out[2])

        handle = gate.register_forward_hook(keep)
        with torch.no_grad():
            for text in given:
                model(text[None])
        handle.remove()
        z, name = torch.cat(logits).float(), f"router/model.layers.{index}.mlp.gate.weight"
        shares = torch.cat(chosen).reshape(-1).bincount(minlength=4) / (2 * len(z))
        torch.testing.assert_close(found[name][0], shares)
        torch.testing.assert_close(found[name][1:], z.T @ z / len(z))
        assert torch.equal(found[name], again[name])


def test_routers_of_a_dense_model_are_refused_by_name(tmp_path):
    _, folder = saved("llama", tmp_path / "model")
    layout = layered(folder, texts()).source.layout
    with pytest.raises(InputError, match="the model: router: LlamaForCausalLM has no experts"):
        check_inputs(layout, "the model", ["router"])
