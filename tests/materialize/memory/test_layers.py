"""Paths that reorder, repeat, drop and scale layers: the resident model, and its export."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance
from paths import KINDS, REPEATED, by_hand, logits, open_models, recipe_of, stepped_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.models.path_config import config_of_path
from evomerge.recipe import Merge


def resident_of(models, compute=torch.float32):
    return Resident(models.layout, Kernel(models.sources), compute)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return open_models(tmp_path_factory.mktemp("llama"), experts=("math", "lang"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_path_is_the_same_with_and_without_cache_and_as_export(tmp_path, kind):
    models = open_models(tmp_path, kind)
    resident = resident_of(models)
    recipe = recipe_of(models, REPEATED)
    resident.write(recipe)
    expected = logits(resident.model)
    torch.testing.assert_close(expected, by_hand(models, REPEATED), atol=1e-5, rtol=0)
    torch.testing.assert_close(stepped_logits(resident.model), expected, atol=1e-4, rtol=0)

    out = write_checkpoint(recipe, models, DtypeConfig(), tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == len(REPEATED)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped_logits(loaded), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_generation_from_a_repeated_path_is_the_same_with_and_without_cache(tmp_path, kind):
    models = open_models(tmp_path, kind)
    resident = resident_of(models)
    resident.write(recipe_of(models, [(s, layer, 0.9) for s, layer in REPEATED]))
    tokens = torch.tensor([[1, 5, 9, 13, 17]])
    texts = [
        resident.model.generate(
            tokens, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=cache
        ).tolist()
        for cache in (True, False)
    ]
    assert len(texts[0][0]) == 17
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_layer_types_and_weights_follow_the_source_layer_from_candidate_to_candidate(
    tmp_path, kind
):
    models = open_models(tmp_path, kind)
    resident = resident_of(models)
    straight = [("base", 0), ("base", 1), ("base", 2)]
    paths = [straight, REPEATED, [("math", 2), ("base", 0)], REPEATED, straight, [("base", 1)]]
    for path in paths:
        resident.write(recipe_of(models, path))
        torch.testing.assert_close(logits(resident.model), by_hand(models, path), atol=1e-5, rtol=0)


def test_a_scale_multiplies_what_enters_its_layer_and_goes_with_its_candidate(llama):
    resident = resident_of(llama)
    scaled = [("base", 0, 0.5), ("math", 1), ("math", 1, 2.0), ("base", 2)]
    plain = [path[:2] for path in scaled]
    for path in (scaled, plain, scaled):
        resident.write(recipe_of(llama, path))
        torch.testing.assert_close(logits(resident.model), by_hand(llama, path), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            stepped_logits(resident.model), logits(resident.model), atol=1e-5, rtol=0
        )


def test_slots_with_the_same_weights_share_storage_and_are_written_once(llama, monkeypatch):
    filled = []
    fill_all = Kernel.fill_all

    def spy(self, targets, seed):
        filled.extend(step.tensor.name for _, step in targets)
        fill_all(self, targets, seed)

    monkeypatch.setattr(Kernel, "fill_all", spy)
    resident = resident_of(llama)
    resident.write(recipe_of(llama, [("math", 1), ("math", 1), ("lang", 1), ("math", 1)]))
    weights = [layer.mlp.up_proj.weight.data_ptr() for layer in resident.model.model.layers]
    assert weights[0] == weights[1] == weights[3] != weights[2]
    assert filled.count("model.layers.1.mlp.up_proj.weight") == 2
    filled.clear()
    resident.write(recipe_of(llama, [("lang", 1), ("math", 1), ("lang", 1)]))
    assert not any(".layers." in name for name in filled)


def mlp(slot, weight, method="task_arithmetic", **values):
    experts = {"math": {"weight": weight, **values}}
    return Merge(slot=slot, group="mlp", method=method, experts=experts)


def test_a_repeated_layer_may_be_merged_differently_in_each_slot(llama, tmp_path):
    path = [("base", 0), ("base", 1), ("base", 1), ("base", 1)]
    recipe = recipe_of(llama, path, (mlp(1, 0.2), mlp(2, 0.7), mlp(3, 0.2)))
    resident = resident_of(llama)
    resident.write(recipe)
    layers = resident.model.model.layers
    name = "model.layers.1.mlp.up_proj.weight"
    base, math = (llama.sources[s].read(name) for s in ("base", "math"))
    for slot, weight in ((1, 0.2), (2, 0.7), (3, 0.2)):
        torch.testing.assert_close(layers[slot].mlp.up_proj.weight, base + weight * (math - base))
    out = write_checkpoint(recipe, llama, DtypeConfig(), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(resident.model))


def test_a_layer_keeps_its_random_mask_wherever_a_path_puts_it(llama):
    resident = resident_of(llama)
    straight = [("base", 0), ("base", 1), ("base", 2)]
    values = {"density": 0.5, "method": "dare_linear"}
    resident.write(recipe_of(llama, straight, (mlp(1, 1.0, **values),), seed=4))
    expected = resident.model.model.layers[1].mlp.up_proj.weight.clone()
    resident.write(recipe_of(llama, straight))
    moved = [("base", 2), ("base", 0), ("base", 1)]
    resident.write(recipe_of(llama, moved, (mlp(2, 1.0, **values),), seed=4))
    assert torch.equal(resident.model.model.layers[2].mlp.up_proj.weight, expected)
    resident.write(recipe_of(llama, moved, (mlp(2, 1.0, **values),), seed=5))
    assert not torch.equal(resident.model.model.layers[2].mlp.up_proj.weight, expected)


def test_many_candidates_hold_no_more_layers_than_one_needs(llama):
    resident = resident_of(llama)
    for weight in range(20):
        recipe = recipe_of(llama, [("base", 0), ("base", 1)], (mlp(1, weight / 20),))
        resident.write(recipe)
    assert [len(weights) for weights in resident._layers._weights.values()] == [1, 1, 1]


def test_a_scale_on_the_first_slot_is_folded_into_the_embeddings(llama, tmp_path):
    recipe = recipe_of(llama, [("base", 0, 0.7), ("math", 2), ("base", 1)])
    resident = resident_of(llama)
    resident.write(recipe)
    out = write_checkpoint(recipe, llama, DtypeConfig(), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(resident.model), atol=1e-5, rtol=0)


def test_scales_that_no_checkpoint_can_say_are_refused_with_the_reason(llama, tmp_path):
    inner = recipe_of(llama, [("base", 0), ("math", 2, 0.9)])
    with pytest.raises(InputError, match=r"path\[1\] scales its input by 0.9.*epsilon"):
        write_checkpoint(inner, llama, DtypeConfig(), tmp_path / "out")
    tied = open_models(tmp_path / "tied", "gpt2")
    with pytest.raises(InputError, match="the head is tied"):
        write_checkpoint(recipe_of(tied, [("base", 0, 0.9)]), tied, DtypeConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_a_config_cannot_place_are_refused_before_anything_is_written(tmp_path):
    models = open_models(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match=r"layer 0 is the model's layer 1: attn\.scaling"):
        write_checkpoint(recipe_of(models, [("base", 1)]), models, DtypeConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_sources_config_is_never_changed(llama):
    before = llama.sources["base"].config.to_dict()
    resident_of(llama).write(recipe_of(llama, REPEATED))
    config_of_path(llama.sources["base"].config, [2, 1])
    assert llama.sources["base"].config.to_dict() == before


def asked(request_type, *arguments):
    return [Instance(request_type, {}, args, 0, ("t", i, 1)) for i, args in enumerate(arguments)]


def plainly(model, tokenizer, contexts, most):
    """Greedy answers from whole forward passes, one token at a time, without a cache."""
    texts = []
    for context in contexts:
        tokens = tokenizer.encode(context)
        start = len(tokens)
        with torch.no_grad():
            while len(tokens) < start + most and tokens[start:][-1:] != [2]:
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
                tokens.append(int(logits.argmax()))
        texts.append(tokenizer.decode(tokens[start:], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "gpt2", "smollm3"])
def test_rewired_models_are_scored_and_generate_as_plain_passes_say(kind, tmp_path):
    """Repeated layers share weights but not their part of the cache; scales stand before layers."""
    models = open_models(tmp_path, kind)
    resident, tokenizer = resident_of(models), AutoTokenizer.from_pretrained(tmp_path / "base")
    lm = make_lm(resident.model, tokenizer, 4)
    local = Local(lm)
    shared = "w1 w2 w3 w4 w5 w6 w7"
    contexts = [f"{shared} w8", f"{shared} w9 w10", "w9"]
    choices = [(context, f" w{i} w{i + 1}") for context in contexts for i in range(20, 23)]
    scored = asked("loglikelihood", *choices)
    said = asked("generate_until", *((c, {"until": [], "max_gen_toks": 6}) for c in contexts))
    scaled = [(*slot, 1.0 + 0.25 * (i % 3)) for i, slot in enumerate(REPEATED)]
    seen = set()
    for path in (REPEATED, scaled, [("base", 0), ("math", 2)], REPEATED):
        resident.write(recipe_of(models, path))
        expected = [lm.loglikelihood([one], disable_tqdm=True)[0][0] for one in scored]
        assert [r.value[0] for r in local.answer(scored)] == pytest.approx(expected, abs=1e-4)
        texts = [response.value for response in local.answer(said)]
        assert texts == plainly(resident.model, tokenizer, contexts, 6)
        seen.add(round(sum(expected), 3))
    assert len(seen) == 3
    assert local._forward.packs()  # else lm-eval's own loop would be compared
