import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.common.errors import InputError
from evomerge.models.checks.checked_models import check_models
from evomerge.models.tokens.tokenizer import load_tokenizer
from evomerge.models.vocabulary import with_base_rows

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_models_that_fit_pass_with_the_base_first_and_nothing_to_tell(saved, campaign):
    found = check_models(campaign(saved("b"), math=saved("m", seed=1), lang=saved("l", seed=2)))
    assert list(found.sources) == ["base", "math", "lang"]
    assert found.layout == found.sources["base"].layout
    assert found.notes == ()


def test_another_architecture_is_refused(saved, campaign, model_of, tmp_path):
    model_of("qwen2").save_pretrained(tmp_path / "qwen")
    with pytest.raises(InputError, match=r"models\.experts\.math: .*Qwen2ForCausalLM.*Llama"):
        check_models(campaign(saved("b"), math=tmp_path / "qwen"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, but 3"),
        ({"intermediate_size": 32}, r"gate_proj\.weight has shape \[32, 16\], but \[24, 16\]"),
        ({"attention_bias": True}, r"has a tensor model\.layers\.0\.self_attn\.q_proj\.bias"),
    ],
)
def test_another_size_is_refused_by_tensor(saved, campaign, changes, message):
    config = campaign(saved("b"), lang=saved("l", seed=1), math=saved("m", seed=2, **changes))
    with pytest.raises(InputError, match=rf"models\.experts\.math: .*{message}"):
        check_models(config)


def test_a_tensor_only_the_base_has_is_refused(saved, campaign):
    base = saved("b", attention_bias=True)
    with pytest.raises(InputError, match=r"has no tensor .*q_proj\.bias"):
        check_models(campaign(base, math=saved("m", seed=1)))


def test_an_expert_equal_to_the_base_is_refused_however_it_is_stored(
    saved, campaign, model_of, edit_config, tmp_path
):
    model_of().save_pretrained(tmp_path / "copy", max_shard_size="8kB")
    edit_config(tmp_path / "copy", rope_theta=5000.0)
    with pytest.raises(InputError, match=r"models\.experts\.math: equal to the base: its task"):
        check_models(campaign(saved("b"), math=tmp_path / "copy"))


def spoil(folder, value, *places):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, index in places:
        tensors[name].view(-1)[index] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["base", "math"])
def test_a_model_that_holds_nan_or_infinity_is_refused_with_tensor_and_count(
    saved, campaign, name, value
):
    folders = {"base": saved("b"), "math": saved("m", seed=1), "lang": saved("l", seed=2)}
    up = "model.layers.1.mlp.up_proj.weight"
    spoil(folders[name], value, (up, 5), (up, 9))
    key = "models.base" if name == "base" else "models.experts.math"
    kind = "NaN" if value != value else "infinity"
    with pytest.raises(InputError) as raised:
        check_models(campaign(folders.pop("base"), **folders))
    assert f"{key}: {up} holds {kind} (2 of 384 values); every merge" in str(raised.value)


def test_of_several_tensors_with_nan_the_first_is_named_and_the_others_counted(saved, campaign):
    broken = saved("m", seed=1)
    spoil(broken, float("nan"), (EMBEDDING, 3), ("model.norm.weight", 0), (HEAD, 1))
    with pytest.raises(InputError, match=r"embed_tokens.weight holds NaN .*, and 2 more tensors"):
        check_models(campaign(saved("b"), math=broken))


def test_equal_experts_and_other_dtypes_are_told(saved, campaign):
    config = campaign(
        saved("b"),
        math=saved("m", seed=1, dtype=torch.float16),
        again=saved("a", seed=1, dtype=torch.float16),
    )
    dtype, _, twins = check_models(config).notes
    assert "models.experts.math: 30 of 30 tensors" in dtype
    assert "is float16, not float32" in dtype
    assert twins == "models.experts.again: the same weights as models.experts.math"


def head_as_embedding(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_head_of_its_own_is_refused_where_the_base_ties(saved, campaign):
    base, expert = saved("b", tie_word_embeddings=True), saved("m", seed=1)
    with pytest.raises(InputError, match=r"models\.experts\.math: stores a lm_head\.weight"):
        check_models(campaign(base, math=expert))
    head_as_embedding(expert)
    found = check_models(campaign(base, math=expert))
    assert HEAD not in found.layout.names


def test_a_tied_head_is_refused_where_the_base_has_its_own(saved, campaign):
    base, expert = saved("b"), saved("m", seed=1, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"models\.experts\.math: ties lm_head\.weight"):
        check_models(campaign(base, math=expert))
    head_as_embedding(base)
    found = check_models(campaign(base, math=expert))
    source, spec = found.sources["math"], found.layout.tensor(HEAD)
    assert torch.equal(with_base_rows(source, found.sources["base"], spec), source.read(EMBEDDING))


def test_the_base_needs_a_tokenizer_and_an_expert_without_one_is_told(saved, campaign):
    base, expert = saved("b"), saved("m", seed=1)
    for file in expert.glob("tokenizer*"):
        file.unlink()
    [note] = check_models(campaign(base, math=expert)).notes
    assert "models.experts.math: no tokenizer" in note
    with pytest.raises(InputError, match=r"models\.base: no tokenizer"):
        check_models(campaign(expert, math=base))


def test_a_merge_that_is_not_scored_needs_no_tokenizer(saved, campaign):
    base, expert = saved("b"), saved("m", seed=1)
    for file in base.glob("tokenizer*"):
        file.unlink()
    found = check_models(campaign(base, math=expert), only_merged=True)
    assert any("so the result has none" in note for note in found.notes)


def test_no_tokenizer_is_made_up_for_a_model_that_has_none(model_of, campaign, tmp_path):
    for seed in (0, 1):  # transformers gives a bare GPT-2 folder a tokenizer of one token
        model_of("gpt2", seed).save_pretrained(tmp_path / str(seed))
    with pytest.raises(InputError, match=r"models\.base: no tokenizer"):
        check_models(campaign(tmp_path / "0", math=tmp_path / "1"))


def test_a_damaged_tokenizer_is_refused_with_its_model(saved, campaign):
    base, expert = saved("b"), saved("m", seed=1)
    (expert / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"models\.experts\.math: .*tokenizer cannot be loaded"):
        check_models(campaign(base, math=expert))


def test_a_tokenizer_that_numbers_tokens_differently_is_refused_with_the_id(
    saved, campaign, add_tokenizer
):
    base, expert = saved("b"), saved("m", seed=1)
    add_tokenizer(expert, renamed={20: "t7", 7: "t20"})
    with pytest.raises(InputError, match=r"models\.experts\.math: token id 7 is 't20', but 't7'"):
        check_models(campaign(base, math=expert))


def test_added_tokens_may_have_other_names_and_that_is_said(saved, campaign):
    """As chat markers have in R1's distillates of Qwen."""
    base, expert = saved("b"), saved("m", seed=1)
    for folder, marker in ((base, "<|im_start|>"), (expert, "<|User|>")):
        tokenizer = load_tokenizer(folder)
        tokenizer.add_tokens([marker])
        tokenizer.save_pretrained(folder)
    [note] = check_models(campaign(base, math=expert)).notes
    assert "'<|User|>' for '<|im_start|>' (id 30)" in note


def test_tokens_in_rows_only_one_model_names_are_no_conflict(saved, campaign, add_tokenizer):
    base, expert = saved("b"), saved("m", seed=1)
    add_tokenizer(expert, tokens=32)
    assert check_models(campaign(base, math=expert)).notes == ()


def test_tokens_of_the_base_beyond_its_embeddings_rows_are_told(saved, campaign, add_tokenizer):
    base, expert = saved("b"), saved("m", seed=1)
    for folder in (base, expert):
        add_tokenizer(folder, tokens=35)
    [note] = check_models(campaign(base, math=expert)).notes
    assert note.startswith("models.base: its tokenizer has 3 tokens from id 32 ('t32') on, and its")
    assert "32 rows" in note


def test_tokens_beyond_the_smaller_vocabulary_may_differ(saved, campaign, add_tokenizer):
    base, expert = saved("b"), saved("m", seed=1, vocab_size=28)
    add_tokenizer(expert, renamed={29: "other"})
    [note] = check_models(campaign(base, math=expert)).notes
    assert "vocabulary of 28 rows, 32 in the base" in note


@pytest.mark.parametrize("rows", [28, 40])
def test_an_expert_of_another_vocabulary_gets_the_bases_rows(saved, campaign, rows):
    found = check_models(campaign(saved("b"), math=saved("m", seed=1, vocab_size=rows)))
    base, expert = found.sources.values()
    for name in (EMBEDDING, HEAD):
        merged = with_base_rows(expert, base, found.layout.tensor(name))
        shared = min(rows, 32)
        assert merged.shape == (32, 16)
        assert torch.equal(merged[:shared], expert.read(name)[:shared])
        assert torch.equal(merged[shared:], base.read(name)[shared:])
    assert any(f"{rows} rows" in note for note in found.notes)


def test_an_expert_with_more_rows_but_the_bases_weights_is_equal_to_the_base(saved, campaign):
    base, folder = saved("b"), saved("m", vocab_size=40)
    tensors = load_file(folder / "model.safetensors")
    ours = load_file(base / "model.safetensors")
    for name, tensor in ours.items():
        tensors[name] = (
            torch.cat([tensor, tensors[name][32:]]) if name in (EMBEDDING, HEAD) else tensor
        )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="equal to the base"):
        check_models(campaign(base, math=folder))


def test_errors_of_opening_reach_the_user_with_the_experts_key(saved, campaign, tmp_path):
    base = saved("b")
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(InputError, match=r"models\.experts\.math: .*model\.safetensors: truncated"):
        check_models(campaign(base, math=broken))


def test_another_number_of_heads_at_equal_shapes_is_refused(saved, campaign):
    base = saved("b", num_attention_heads=4, num_key_value_heads=4)
    expert = saved("m", seed=1, num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(InputError, match=r"experts\.math: num_attention_heads is 2 .* but 4 in"):
        check_models(campaign(base, math=expert))


def test_another_rotation_of_positions_is_told(saved, campaign, edit_config):
    base, expert = saved("b"), saved("m", seed=1)
    edit_config(expert, rope_theta=5000.0, rope_parameters=None)
    [note] = check_models(campaign(base, math=expert)).notes
    assert note.startswith("models.experts.math: rope_parameters is {'rope_theta': 5000.0")
    edit_config(expert, rope_theta=10000.0)
    assert check_models(campaign(base, math=expert)).notes == ()
