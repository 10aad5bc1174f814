import itertools
import pickle

import numpy as np
import pytest
import torch
from permuted import logits, permuted, shuffled

from evomerge.common.errors import InputError
from evomerge.models.alignment.git_rebasin import HEADS, UNITS, Aligned, align
from evomerge.models.alignment.permutable_rows import permutable_units
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.checks.checked_models import check_models

GROUPED = {"num_attention_heads": 4, "head_dim": 8}

KINDS = {
    "llama": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"num_attention_heads": 4},
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma3_text": GROUPED,
    "olmo2": {"num_attention_heads": 4},
    "phi3": {"num_attention_heads": 4},
    "phi": {},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "starcoder2": {"num_attention_heads": 4},
    "gpt2": {},
    "gpt_neox": {},
    "mixtral": {"num_attention_heads": 4, "num_local_experts": 2},
}

WITHOUT_HEADS, WITHOUT_UNITS = {"gpt_neox"}, {"mixtral"}


def perturbed(model, size=0.01):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * size)
    return model


@pytest.fixture
def pair(model_of, add_tokenizer, tmp_path):
    """(kind, **changes) -> a base, the base with noise, and that one with units permuted."""

    def build(kind, dtype=torch.float32, **changes):
        base = model_of(kind, **changes)
        expert = perturbed(model_of(kind, **changes))
        for name, model in (("base", base), ("math", expert)):
            model.to(dtype).save_pretrained(tmp_path / name, save_original_format=False)
        before = logits(expert.float())
        after = logits(permuted(expert).float())
        expert.to(dtype).save_pretrained(tmp_path / "permuted", save_original_format=False)
        for name in ("base", "math", "permuted"):
            add_tokenizer(tmp_path / name)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        return [open_checkpoint(n, str(tmp_path / n)) for n in ("base", "math", "permuted")]

    return build


def same_tensors(one, other):
    return [n for n in one.names() if not torch.equal(one.read(n), other.read(n))] == []


@pytest.mark.parametrize("kind", KINDS)
def test_planted_permutations_keep_the_function_and_are_undone_exactly(pair, kind):
    base, math, stored = pair(kind, **KINDS[kind])
    assert not same_tensors(stored, math)
    found = Aligned(stored, base)
    assert same_tensors(found, math)
    assert (HEADS in found.alignment.moved) == (kind not in WITHOUT_HEADS)
    assert (UNITS in found.alignment.moved) == (kind not in WITHOUT_UNITS)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_stranger_computes_the_same_when_aligned_and_lies_nearer(model_of, tmp_path, kind):
    changes = {} if kind == "gpt2" else GROUPED
    model_of(kind, **changes).save_pretrained(tmp_path / "base")
    stranger = model_of(kind, seed=1, **changes)
    stranger.save_pretrained(tmp_path / "math")
    base, math = (open_checkpoint(name, str(tmp_path / name)) for name in ("base", "math"))
    found = Aligned(math, base)
    before = logits(stranger)
    stranger.load_state_dict({n: found.read(n) for n in found.names()}, strict=False)
    torch.testing.assert_close(logits(stranger), before, rtol=1e-4, atol=1e-4)
    names = base.names()

    def distance(source):
        return sum(float((source.read(n) - base.read(n)).square().sum()) for n in names)

    assert distance(found) < distance(math)


@pytest.mark.parametrize("stranger", [1, 3, 6])
def test_heads_of_strangers_are_matched_as_well_as_by_trying_all(model_of, tmp_path, stranger):
    changes = {**GROUPED, "num_hidden_layers": 1}
    for seed, name in ((0, "base"), (stranger, "math")):
        model_of("llama", seed, **changes).save_pretrained(tmp_path / name)
    base, math = (open_checkpoint(name, str(tmp_path / name)) for name in ("base", "math"))
    [units] = permutable_units(base.config)

    def worth(groups, within):
        heads = np.concatenate([2 * g + np.array(w) for g, w in zip(groups, within, strict=True)])
        orders = {2: np.array(groups), 4: heads}
        total = 0.0
        for part in units.heads.parts:
            name = f"model.layers.0.{part.suffix}"
            theirs = part.flatten(math.read(name))[torch.from_numpy(orders[part.count])]
            total += float((part.flatten(base.read(name)) * theirs).sum())
        return total

    swaps = [(0, 1), (1, 0)]
    tried = {(g, w): worth(g, w) for g in swaps for w in itertools.product(swaps, swaps)}
    (groups, within), best = max(tried.items(), key=lambda item: item[1])
    moves = {m.rows.suffix: m.order for ms in align(base, math).moves.values() for m in ms}
    heads = [2 * g + i for g, w in zip(groups, within, strict=True) for i in w]
    assert best > tried[((0, 1), ((0, 1), (0, 1)))]  # else staying would do
    assert moves.get("self_attn.q_proj.weight", np.arange(4)).tolist() == heads
    assert moves.get("self_attn.k_proj.weight", np.arange(2)).tolist() == list(groups)


def test_alibi_heads_stay_in_their_places(config_of):
    assert permutable_units(config_of("llama"))[0].heads is not None
    assert permutable_units(config_of("llama", alibi=True))[0].heads is None


def test_units_that_are_alike_stay_in_their_places(model_of, tmp_path):
    model = model_of("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[3:] = layer.mlp.gate_proj.weight[3]
            layer.mlp.up_proj.weight[3:] = layer.mlp.up_proj.weight[3]
            layer.mlp.down_proj.weight[:, 3:] = 0.0
    model.save_pretrained(tmp_path / "base")
    perturbed(model, 1e-6).save_pretrained(tmp_path / "math")
    base, math = (open_checkpoint(name, str(tmp_path / name)) for name in ("base", "math"))
    assert align(base, math).moves == {}


def test_an_expert_in_the_bases_order_keeps_its_digest_and_another_does_not(pair):
    base, math, stored = pair("llama")
    assert Aligned(math, base).digest == math.digest
    digest = Aligned(stored, base).digest
    assert digest not in (stored.digest, math.digest)
    assert Aligned(stored, base).digest == digest
    assert Aligned(stored, base, shuffled(base.config, "model.layers", 1)).digest != digest


def test_an_aligned_model_is_reopened_with_its_permutations(pair, monkeypatch):
    base, math, stored = pair("llama", dtype=torch.bfloat16)
    found = Aligned(stored, base)
    data = pickle.dumps(found)
    monkeypatch.setattr("evomerge.models.alignment.git_rebasin.align", None)
    again = pickle.loads(data)
    assert same_tensors(again, math)
    assert again.digest == found.digest
    assert again.tensor_digests == math.tensor_digests


def test_weights_that_are_not_finite_are_named(pair, tmp_path, model_of):
    base, _, _ = pair("llama")
    broken = model_of("llama", seed=1)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[2, 2] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"models\.experts\.broken: layer 1 is not finite"):
        align(base, open_checkpoint("broken", str(tmp_path / "broken")))


def test_the_check_tells_what_moved_and_only_experts_can_be_aligned(pair, campaign):
    base, _, stored = pair("llama")
    given = campaign(base.folder, {"align": ["math"]}, math=stored.folder)
    [note] = check_models(given).notes
    assert note.startswith("models.experts.math: aligned to the base: moved ")
    assert "of 72 MLP units" in note
    with pytest.raises(ValueError, match=r"align: no expert 'maths'; the experts are math"):
        campaign(base.folder, {"align": ["maths"]}, math=stored.folder)
