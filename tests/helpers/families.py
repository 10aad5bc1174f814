"""Small random models of several architectures, over the room's vocabulary."""

from __future__ import annotations

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LENGTH = 24
_TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.4,
}
_HEADS = {**_SHAPE, "head_dim": 8}


def _seeded(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()


FAMILIES = {
    "llama": lambda: _seeded(LlamaForCausalLM, LlamaConfig(**_SHAPE)),
    "qwen3": lambda: _seeded(
        Qwen3ForCausalLM,
        Qwen3Config(**_HEADS, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    "gemma2": lambda: _seeded(
        Gemma2ForCausalLM,
        Gemma2Config(
            **{**_HEADS, "initializer_range": 0.6}, final_logit_softcapping=2.0, sliding_window=8
        ),
    ),
    "gemma3": lambda: _seeded(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **_HEADS, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
        ),
    ),
    "mistral": lambda: _seeded(MistralForCausalLM, MistralConfig(**_HEADS, sliding_window=4)),
    "gpt2": lambda: _seeded(
        GPT2LMHeadModel,
        GPT2Config(
            **_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, initializer_range=0.4
        ),
    ),
}
"""Those whose beginnings can be shared; three have windows, two of them beside full attention."""


def bloom():
    """A model whose positions are in the mask that it makes itself."""
    return _seeded(
        BloomForCausalLM,
        BloomConfig(**_TOKENS, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4),
    )
