"""Tiny random models of many architectures, saved as a user would have them."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from evomerge.config import ModelsConfig

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
EIGHT_WIDE = {"head_dim": 8}
SETTINGS = {
    "qwen3": EIGHT_WIDE,
    "gemma": EIGHT_WIDE,
    "gemma2": EIGHT_WIDE,
    "gemma3_text": EIGHT_WIDE,
}


def _config(kind, **changes):
    sizes = GPT2 if kind == "gpt2" else SIZES | SETTINGS.get(kind, {})
    return AutoConfig.for_model(kind, **(sizes | changes))


def _model(kind="llama", seed=0, **changes):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(kind, **changes))
    for weight in model.parameters():  # norms start at one, biases at zero: make all distinct
        torch.nn.init.normal_(weight, std=0.1)
    return model


def _add_tokenizer(folder, tokens=30, renamed=None):
    vocabulary = {(renamed or {}).get(i, f"t{i}"): i for i in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="session")
def config_of():
    """(kind, **changes) -> config of a tiny model."""
    return _config


@pytest.fixture(scope="session")
def model_of():
    """(kind, seed, **changes) -> a tiny model in which every weight is random."""
    return _model


@pytest.fixture(scope="session")
def add_tokenizer():
    """(folder, tokens, renamed) -> saves a word-level tokenizer of t0, t1, … there."""
    return _add_tokenizer


@pytest.fixture
def saved(tmp_path):
    """(name, seed=, **changes) -> folder of a tiny Llama with a tokenizer."""

    def save(name, seed=0, dtype=torch.float32, **changes):
        _model("llama", seed, **changes).to(dtype).save_pretrained(tmp_path / name)
        _add_tokenizer(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def edit_config():
    """(folder, **changes) -> rewrites keys of its config.json."""

    def edit(folder, **changes):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.fixture
def campaign():
    """(base, flags, **experts) -> the models section of a campaign."""

    def models_config(base, flags=None, **experts):
        specs = {name: str(folder) for name, folder in experts.items()}
        return ModelsConfig(base=str(base), experts=specs, **(flags or {}))

    return models_config
