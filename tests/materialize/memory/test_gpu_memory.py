"""A model on several devices: which layer goes where, and that hooks change no number.

There is no GPU here: two are pretended where only sizes count, and the hooks run on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from paths import REPEATED, by_hand, logits, open_models, recipe_of, stepped_logits
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.common.errors import InputError
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory import resident as resident_module
from evomerge.materialize.memory.gpu_memory import placement, spread
from evomerge.materialize.memory.resident import Resident
from evomerge.recipe import Merge

MIB = 1 << 20


def weightless(tied):
    config = AutoConfig.for_model(
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        vocab_size=1000,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def size_on(model, devices, device):
    homes = {
        name: home
        for name, _ in model.named_parameters()
        for prefix, home in devices.items()
        if name.startswith(prefix)
    }
    named = dict(model.named_parameters())
    return sum(named[n].numel() * named[n].element_size() for n, d in homes.items() if d == device)


@pytest.mark.parametrize("tied", [False, True])
def test_whole_layers_go_to_one_gpu_after_another_about_as_much_to_each(tied):
    model = weightless(tied)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    devices = placement(model, {0: whole, 1: whole})
    homes = [devices[f"model.layers.{layer}"] for layer in range(8)]
    assert homes == sorted(homes)
    assert set(homes) == {0, 1}
    sizes = [size_on(model, devices, gpu) for gpu in (0, 1)]
    assert max(sizes) < 0.75 * sum(sizes)
    if tied:
        assert devices["lm_head"] == devices["model.embed_tokens"]


def test_what_does_not_fit_is_refused_and_never_put_on_a_disk():
    model = weightless(False)
    with pytest.raises(InputError, match=r"workers\.gpus_per_worker: .* not fit on the 2 GPUs"):
        placement(model, {0: 8 * MIB, 1: 8 * MIB})


@pytest.fixture
def hooked(monkeypatch):
    """Residents that are `parallel` have their hooks, but every module on the CPU."""
    monkeypatch.setattr(resident_module, "placement", lambda model: {"": "cpu"})
    monkeypatch.setattr(
        resident_module,
        "spread",
        lambda model, _: spread(
            model, dict.fromkeys([n for n, _ in model.named_children()], "cpu")
        ),
    )


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_paths_repeat_and_reorder_layers_that_have_hooks(hooked, tmp_path, kind):
    models = open_models(tmp_path, kind)
    resident = Resident(models.layout, Kernel(models.sources), torch.float32, parallel=True)
    layer = resident.model.get_submodule(models.layout.prefix)[0]
    assert any(hasattr(part, "_hf_hook") for part in layer.modules())
    for path in (REPEATED, REPEATED[::-1], REPEATED[:2]):
        resident.write(recipe_of(models, path))
        torch.testing.assert_close(logits(resident.model), by_hand(models, path), atol=1e-5, rtol=0)
        stepped = stepped_logits(resident.model)
        torch.testing.assert_close(stepped, logits(resident.model), atol=1e-4, rtol=0)


def test_merges_are_written_into_hooked_models_to_the_byte(hooked, tmp_path):
    models = open_models(tmp_path, experts=("math", "lang"))
    experts = {"math": {"weight": 0.7, "density": 0.4}, "lang": {"weight": 0.5, "density": 0.6}}
    merges = [Merge(slot=s, group="layer", method="ties", experts=experts) for s in range(3)]
    recipe = recipe_of(models, [("base", layer) for layer in range(3)], tuple(merges))
    residents = [
        Resident(models.layout, Kernel(models.sources), torch.float32, parallel=parallel)
        for parallel in (False, True)
    ]
    for resident in residents:
        resident.write(recipe)
    assert torch.equal(*(logits(resident.model) for resident in residents))
