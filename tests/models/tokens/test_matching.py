"""Vocabularies matched by their tokens' text: rows, configs, digests, notes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.export.folder import export_recipe
from evomerge.export.merge import merge_file
from evomerge.materialize.disk.provenance import MergeInputs
from evomerge.mergekit import to_mergekit
from evomerge.models.checks.checked_models import check_models
from evomerge.models.open_models import as_stored, open_models
from evomerge.recipe import Merge, Recipe, Slot

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A base, `math` with its tokens in another order, `lang` with two more; 70 rows each."""
    tiny.save_family(tmp_path, vocab_size=70, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lang")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path / "lang")
    permute(tmp_path / "math")
    return tmp_path


def permute(model: Path) -> None:
    """Number a model's tokens backwards, and its rows with them."""
    words = list(reversed([*tiny.SPECIAL, *tiny.WORDS]))
    plain = AutoModelForCausalLM.from_pretrained(model)
    for weight in (plain.get_input_embeddings().weight, plain.get_output_embeddings().weight):
        weight.data[: len(words)] = weight.data[: len(words)].flip(0)
    plain.save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    file = model / "tokenizer.json"
    text = tokenizer._tokenizer.to_str()
    data = json.loads(text)
    data["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    for token in data["added_tokens"]:
        token["id"] = data["model"]["vocab"][token["content"]]
    file.write_text(json.dumps(data))


def config_of(folder, **tokenizer):
    experts = {name: str(folder / name) for name in ("math", "lang")}
    return ModelsConfig(base=str(folder / "base"), experts=experts, tokenizer=tokenizer or None)


def recipe_of(models, **weights):
    merges = [
        Merge(
            slot=slot,
            group=group,
            method="task_arithmetic",
            experts={name: {"weight": weight} for name, weight in weights.items()},
            parameters={"lambda": 1.0},
        )
        for slot, group in ((None, "embeddings"), (0, "layer"), (1, "layer"), (None, "head"))
    ]
    return Recipe(
        sources={name: source.digest for name, source in models.sources.items()},
        path=tuple(Slot(source="base", layer=layer) for layer in range(2)),
        merges=tuple(merges),
        tokenizer=models.tokenizer,
    )


def test_without_a_tokenizer_other_numbers_are_refused_and_the_way_out_is_named(folder):
    with pytest.raises(InputError, match=r"models\.experts\.math: token id 0 .* models\.tokenizer"):
        check_models(config_of(folder))


def test_words_are_matched_whatever_their_numbers(folder):
    math = open_models(config_of(folder, source="base"))["math"]
    own = as_stored(math).read(EMBEDDING)
    assert math.shape(EMBEDDING) == (64, 32)
    assert torch.equal(math.read(EMBEDDING), own[:64].flip(0))
    assert torch.equal(math.read("model.norm.weight"), as_stored(math).read("model.norm.weight"))


def test_rows_that_stay_where_they_are_are_not_copied(folder):
    base = open_models(config_of(folder, source="base"))["base"]
    assert base.read(EMBEDDING).data_ptr() == as_stored(base).read(EMBEDDING).data_ptr()


def test_only_models_that_have_a_token_give_its_row(folder):
    sources = open_models(config_of(folder, source="lang"))
    given = as_stored(sources["lang"]).read(EMBEDDING)[64:66]
    for source in sources.values():
        assert torch.equal(source.read(EMBEDDING)[64:66], given)


def test_padding_is_the_mean_of_the_tokens(folder):
    math = open_models(config_of(folder, pad_to_multiple_of=32))["math"]
    rows = math.read(HEAD)
    assert rows.shape == (96, 32)
    torch.testing.assert_close(rows[66:], rows[:66].mean(0).expand(30, 32))


def test_a_config_names_its_tokens_by_the_result_s_numbers(folder):
    base = open_models(config_of(folder, source="math"))["base"]
    assert (base.config.pad_token_id, base.config.bos_token_id) == (63, 62)
    assert base.config_to_save().eos_token_id == 61
    assert base.config.vocab_size == 64


def test_an_adapter_without_a_tokenizer_of_its_own_has_the_bases(folder):
    tiny.save_adapter(folder / "base", folder / "tuned", r=2)
    experts = {"math": str(folder / "math"), "tuned": str(folder / "tuned")}
    tokenizer = {"source": "tuned"}
    config = ModelsConfig(base=str(folder / "base"), experts=experts, tokenizer=tokenizer)
    words = AutoTokenizer.from_pretrained(folder / "base").get_vocab()
    found = open_models(config)
    assert found["tuned"].vocabulary.words == words
    assert found["tuned"].vocabulary.lacking("tuned") == 0


def test_digests_change_with_the_vocabulary_alone(folder):
    plain = open_models(config_of(folder, source="base"))
    padded = open_models(config_of(folder, source="base", pad_to_multiple_of=8))
    other = open_models(config_of(folder, source="base", tokens={"w1": {"source": "math"}}))
    assert plain["math"].digest == open_models(config_of(folder, source="base"))["math"].digest
    assert plain["math"].digest == padded["math"].digest  # 64 is a multiple of 8
    assert other["math"].digest == plain["math"].digest  # every model has w1
    union = open_models(config_of(folder, source="union"))
    assert union["math"].digest != plain["math"].digest


def test_a_matched_model_survives_pickling(folder):
    lang = open_models(config_of(folder, source="union"))["lang"]
    again = pickle.loads(pickle.dumps(lang))
    assert torch.equal(again.read(HEAD), lang.read(HEAD))
    assert again.digest == lang.digest


def test_notes_say_what_was_matched_and_who_lacks_what(folder):
    notes = check_models(config_of(folder, source="union")).notes
    assert "models.tokenizer: the result has 66 tokens in 66 rows" in notes[0]
    assert "models.experts.math: has other models' rows for 2 of the tokens" in notes


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"source": "code"}, "tokenizer.source: no model 'code'; the models are base, math, lang"),
        ({"tokens": {"w1": {"source": "code"}}}, "tokenizer.tokens.w1: no model 'code'"),
        ({"tokens": {"w1": {"force": True}}}, "force needs a source"),
        (
            {"tokens": {"w1": {"source": {"kind": "model_token", "model": "math"}}}},
            "give either token or token_id",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(folder, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        config_of(folder, **tokenizer)


def test_an_export_loads_and_its_recipe_gives_the_same_bytes_again(folder, tmp_path):
    config = config_of(folder, chat_template="chatml")
    models = check_models(config)
    recipe = recipe_of(models, math=0.5, lang=0.25)
    out = export_recipe(recipe, MergeInputs(config, models, DtypeConfig()), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size == 66
    said = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    assert said == "<|im_start|>user\nw1<|im_end|>\n"
    again, _ = merge_file(out / "recipe.json", tmp_path / "again", {}, None)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


def test_mergekits_file_of_a_recipe_says_which_tokens(folder):
    models = check_models(config_of(folder, pad_to_multiple_of=8, chat_template="llama3"))
    specs = {name: source.spec for name, source in models.sources.items()}
    text = to_mergekit(recipe_of(models, math=0.5, lang=0.25), models.layout, specs, "float32").text
    assert "tokenizer: {source: union, pad_to_multiple_of: 8}" in text
    assert "chat_template: llama3" in text
    with pytest.raises(InputError, match="leaves a model out"):
        to_mergekit(recipe_of(models, math=0.5), models.layout, specs, "float32")
