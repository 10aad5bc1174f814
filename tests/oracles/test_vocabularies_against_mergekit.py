"""Vocabularies that differ: what mergekit 0.1.5 and evomerge make of one file, token by token.

The models are tiny random Llamas. Each file is merged by both tools, and compared is the row of
every token of the result, by its text: where tokens are added, mergekit numbers them as Python's
sets happen to lie.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mergekit._data.chat_templates as mergekit_templates
import pytest
import torch
import yaml
from jinja2 import TemplateError
from mergekit_oracle import merged_by_mergekit, tensors_in
from tiny import SPECIAL, WORDS, llama_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from evomerge.common.errors import InputError
from evomerge.export.merge import merge_file
from evomerge.models.tokens.chat_templates import NAMED

CHATML = ("<|im_start|>", "<|im_end|>")
VOCABULARIES = {
    "base": [*SPECIAL, *WORDS[:40]],
    "x": [*SPECIAL, *WORDS[:40]],
    "chat": [*SPECIAL, *WORDS[:40], *CHATML],
    "chat2": [*SPECIAL, *WORDS[:40], *CHATML, "<|tool|>"],
    "permuted": [*SPECIAL, *reversed(WORDS[:40])],
    "other": [*SPECIAL, *WORDS[3:48:2], *WORDS[0:48:2]],
    "short": [*SPECIAL, *WORDS[:30]],
}
PADDED = {"base": 48, "x": 48, "chat": 48, "chat2": 50, "short": 48}
"""Models with more rows than tokens; the others have as many."""

TABLE = {
    # an expert's own tokens, on padding rows of the others
    "expert": {"x": 0.5, "chat": 0.5, "tokenizer_source": "chat"},
    "expert, permuted": {"x": 0.4, "permuted": 0.6, "tokenizer_source": "permuted"},
    "base, an expert lacks": {"x": 0.7, "short": 0.5, "tokenizer_source": "base"},
    "base, permuted": {"permuted": 0.5, "other": 0.5, "tokenizer_source": "base"},
    "union, base lacks": {"x": 0.5, "chat": 0.5, "chat2": 0.8, "tokenizer_source": "union"},
    "union, permuted": {"permuted": 0.5, "other": 0.25, "chat": 1.0, "tokenizer_source": "union"},
    "union, ties": {"chat": 0.5, "other": 0.5, "tokenizer_source": "union", "method": "ties"},
    "union, slerp": {"chat2": None, "tokenizer_source": "union", "method": "slerp"},
    "padded": {
        "chat": 0.5,
        "short": 0.5,
        "tokenizer": {"source": "union", "pad_to_multiple_of": 32},
    },
    "tokens": {
        "chat": 0.5,
        "other": 0.5,
        "tokenizer": {
            "source": "base",
            "pad_to_multiple_of": 8,
            "tokens": {
                "<|im_start|>": {"source": "chat"},
                "<|im_end|>": {"source": {"kind": "model_token", "model": "base", "token": "</s>"}},
                "w1": {"source": {"kind": "model_token", "model": "chat", "token_id": 9}},
                "w2": {"source": "other", "force": True},
                "<new>": {"source": {"kind": "zero"}},
            },
        },
    },
    "linear without a base": {
        "base": 1.0,
        "chat": 2.0,
        "chat2": 1.0,
        "tokenizer_source": "union",
        "method": "linear",
    },
    "union, permuted and padded": {
        "permuted": 0.5,
        "chat2": 0.5,
        "tokenizer": {"source": "union", "pad_to_multiple_of": 64},
    },
    "union, sce": {"chat": None, "other": None, "tokenizer_source": "union", "method": "sce"},
    "union, model stock": {
        "chat": None,
        "permuted": None,
        "tokenizer_source": "union",
        "method": "model_stock",
    },
    "expert with more tokens, nuslerp": {
        "x": 0.3,
        "chat2": 0.9,
        "tokenizer_source": "chat2",
        "method": "nuslerp",
    },
    "tokens of the permuted, by their numbers": {
        "permuted": 0.5,
        "x": 0.5,
        "tokenizer": {
            "source": "permuted",
            "tokens": {
                "w3": {"source": {"kind": "model_token", "model": "permuted", "token_id": 7}},
                "w5": {"source": "x", "force": True},
            },
        },
    },
    "union in slices": {"chat": 0.5, "other": 0.5, "tokenizer_source": "union", "slices": True},
    "tied": {"chat": 0.5, "other": 0.5, "tokenizer_source": "union", "zoo": "tied"},
}
SLOW = {
    "union, permuted and padded",
    "union, sce",
    "union, model stock",
    "expert with more tokens, nuslerp",
    "tokens of the permuted, by their numbers",
    "union in slices",
}


def save_model(folder: Path, words: list[str], rows: int, seed: int, tied: bool) -> None:
    torch.manual_seed(seed)
    config = llama_config(vocab_size=rows, tie_word_embeddings=tied)
    LlamaForCausalLM(config).save_pretrained(folder)
    plain = [word for word in words if not word.startswith("<|")]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(plain)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    added = [word for word in words if word.startswith("<|")]
    fast.add_special_tokens({"additional_special_tokens": added})
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    """Kind → model → folder."""
    found = {}
    for kind in ("apart", "tied"):
        folder = tmp_path_factory.mktemp(kind)
        for seed, (name, words) in enumerate(VOCABULARIES.items()):
            rows = PADDED.get(name, len(words))
            save_model(folder / name, words, rows, seed, tied=kind == "tied")
        found[kind] = {name: folder / name for name in VOCABULARIES}
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


def text_of(entry: dict, zoo: dict[str, Path]) -> str:
    method = entry.get("method", "task_arithmetic")
    data = {
        "merge_method": method,
        "base_model": "base",
        "models": [
            {"model": name} if weight is None else {"model": name, "parameters": {"weight": weight}}
            for name, weight in entry.items()
            if name in zoo
        ],
        "dtype": "float32",
    }
    if method in ("linear", "nuslerp"):
        del data["base_model"]
    if method == "slerp":
        data["models"].insert(0, {"model": "base"})
        data["parameters"] = {"t": 0.3}
    if "slices" in entry:
        models = [{"model": "base"}, *data.pop("models")]
        data["slices"] = [
            {"sources": [{**model, "layer_range": [layer, layer + 1]} for model in models]}
            for layer in range(2)
        ]
    data |= {key: entry[key] for key in ("tokenizer", "tokenizer_source") if key in entry}
    return yaml.safe_dump(placed(data, zoo), sort_keys=False)


def placed(value, zoo):
    """Folders in place of models' names."""
    if isinstance(value, dict):
        kept = ("token", "merge_method")
        return {k: v if k in kept else placed(v, zoo) for k, v in value.items()}
    if isinstance(value, list):
        return [placed(one, zoo) for one in value]
    return str(zoo[value]) if isinstance(value, str) and value in zoo and value != "base" else value


def by_token(tensors, folder):
    """Tensors with a vocabulary as token → row, and the rows without a token."""
    words = AutoTokenizer.from_pretrained(folder).get_vocab()
    rows = AutoConfig.from_pretrained(folder).vocab_size
    padding = sorted(set(range(rows)) - set(words.values()))
    order = [words[token] for token in sorted(words)] + padding
    matched = {
        name: t[order] if name in ("model.embed_tokens.weight", "lm_head.weight") else t
        for name, t in tensors.items()
    }
    return matched, sorted(words), rows


def merged(text, folder):
    """By both tools: tensors in the order of their tokens' text, those texts, and the rows."""
    file = folder / "file.yaml"
    file.write_text(text)
    ours, _ = merge_file(file, folder / "ours", {}, None)
    theirs = merged_by_mergekit(text, folder / "theirs")
    return by_token(tensors_in(ours), ours), by_token(theirs, folder / "theirs")


def file_of(name, zoos):
    """The zoo and the text of an entry of the table."""
    zoo = zoos[TABLE[name].get("zoo", "apart")]
    text = text_of(TABLE[name], zoo).replace("base_model: base", f"base_model: {zoo['base']}")
    return text.replace("model: base\n", f"model: {zoo['base']}\n")


def assert_same_rows(ours, theirs):
    """Compare two results of `by_token`: tokens, numbers of rows, and every row."""
    (made, words, rows), (expected, their_words, their_rows) = ours, theirs
    assert words == their_words
    assert rows == their_rows
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TABLE]
)
def test_a_file_gives_the_rows_that_mergekit_gives(zoos, tmp_path, name):
    assert_same_rows(*merged(file_of(name, zoos), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["union, permuted and padded", "tokens"])
def test_the_two_commands_agree_on_a_file(zoos, tmp_path, name):
    (tmp_path / "file.yaml").write_text(file_of(name, zoos))
    folder = Path(sys.executable).parent
    for words in (["mergekit-yaml", "file.yaml", "theirs"], ["evomerge", "merge", "file.yaml"]):
        command = [str(folder / words[0]), *words[1:], *["--to", "ours"] * (words[0] == "evomerge")]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = [by_token(tensors_in(tmp_path / n), tmp_path / n) for n in ("ours", "theirs")]
    assert_same_rows(*found)


def test_mergekit_makes_the_same_of_the_file_beside_an_export(zoos, tmp_path):
    (tmp_path / "file.yaml").write_text(file_of("tokens", zoos))
    ours, _ = merge_file(tmp_path / "file.yaml", tmp_path / "ours", {}, None)
    again = merged_by_mergekit((ours / "mergekit.yaml").read_text(), tmp_path / "again")
    assert_same_rows(by_token(tensors_in(ours), ours), by_token(again, tmp_path / "again"))


def test_a_token_row_that_its_model_lacks_is_refused(zoos, tmp_path):
    entry = {"chat": 0.5, "tokenizer": {"source": "base", "tokens": {CHATML[0]: {"source": "x"}}}}
    entry |= {"x": 0.5}
    text = text_of(entry, zoos["apart"]).replace(": base\n", f": {zoos['apart']['base']}\n", 1)
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(InputError, match=r"tokens\.<\|im_start\|>: x has no token '<\|im_start"):
        merge_file(tmp_path / "file.yaml", tmp_path / "out", {}, None)


SYSTEM = {"role": "system", "content": " be kind "}
USER = {"role": "user", "content": " hi\n"}
SAID = {"role": "assistant", "content": "ho "}
TALKS = [[USER], [USER, SAID], [SYSTEM, USER], [SYSTEM, USER, SAID, USER], [USER, USER], [SYSTEM]]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_writes_what_mergekits_writes(name):
    theirs = Path(mergekit_templates.__path__[0], f"{name}.jinja").read_text()
    for talk in TALKS:
        for prompted in (False, True):
            assert written(NAMED[name], talk, prompted) == written(theirs, talk, prompted)


def written(template, talk, prompted):
    options = {"add_generation_prompt": prompted, "bos_token": "<s>", "eos_token": "</s>"}
    try:
        return render_jinja_template([talk], chat_template=template, **options)[0]
    except TemplateError as error:
        return str(error)


def test_every_template_of_mergekits_has_a_name_here():
    theirs = Path(mergekit_templates.__path__[0]).glob("*.jinja")
    assert {path.stem for path in theirs} == set(NAMED)
