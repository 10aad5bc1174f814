"""Models along paths, and the same layers called by hand."""

from __future__ import annotations

import copy

import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.config import ModelsConfig
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import Recipe, Slot

SLIDING = {"sliding_window": 4, "max_position_embeddings": 64}

KINDS = {
    "llama": {},
    "qwen3": {
        "head_dim": 8,
        "use_sliding_window": True,
        "max_window_layers": 2,
        "tie_word_embeddings": False,
        **SLIDING,
    },
    "gemma2": {"head_dim": 8, **SLIDING},
    "gemma3_text": {
        "head_dim": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        **SLIDING,
    },
    "gpt2": {},
    "gpt_neox": {},
    "smollm3": {"no_rope_layers": [1, 1, 0], "tie_word_embeddings": False},
}

REPEATED = (
    ("base", 0),
    ("math", 1),
    ("math", 0),
    ("base", 1),
    ("math", 1),
    ("math", 2),
    ("base", 2),
)


def open_models(folder, kind="llama", experts=("math",), dtype=torch.float32, **changes):
    common = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        common |= {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
    else:
        common |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
        common |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2}
        common |= {"max_position_embeddings": 64}
    paths = {}
    for seed, name in enumerate(("base", *experts)):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **{**common, **KINDS[kind], **changes})
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        paths[name] = str(folder / name)
        model.save_pretrained(paths[name])
        tiny.save_tokenizer(folder / name)
    return check_models(
        ModelsConfig(base=paths["base"], experts={name: paths[name] for name in experts})
    )


def recipe_of(models, path, merges=(), seed=0):
    slots = tuple(Slot(source=s[0], layer=s[1], scale=s[2] if len(s) > 2 else 1.0) for s in path)
    sources = {name: source.digest for name, source in models.sources.items()}
    return Recipe(sources=sources, path=slots, merges=merges, seed=seed)


def logits(model):
    tokens = torch.tensor([[1, 5, 9, 13, 17, 21, 4, 8, 12, 16], [1, 7, 3, 40, 50, 9, 8, 33, 2, 6]])
    with torch.no_grad():
        return model(tokens).logits


def stepped_logits(model):
    """The same, one token at a time through the cache."""
    tokens = torch.tensor([[1, 5, 9, 13, 17, 21, 4, 8, 12, 16], [1, 7, 3, 40, 50, 9, 8, 33, 2, 6]])
    cache, found = None, []
    with torch.no_grad():
        for position in range(tokens.shape[1]):
            step = tokens[:, position : position + 1]
            out = model(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    return torch.cat(found, 1)


def by_hand(models, path):
    """The path run by a loop over separate, whole source models, without rewiring or cache."""
    sources = {
        name: AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
        for name, source in models.sources.items()
    }
    base = sources["base"]
    config = base.config
    layers = [
        copy.deepcopy(sources[source].get_submodule(models.layout.prefix)[layer])
        for source, layer, *_ in path
    ]
    parent, _, name = models.layout.prefix.rpartition(".")
    setattr(base.get_submodule(parent), name, torch.nn.ModuleList(layers))
    for index, (layer, (_, _, *scale)) in enumerate(zip(layers, path, strict=True)):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
        factor = scale[0] if scale else 1.0
        layer.register_forward_pre_hook(lambda _, args, f=factor: (args[0] * f, *args[1:]))
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[layer] for _, layer, *_ in path]
    config.num_hidden_layers = len(path)
    return logits(base)
