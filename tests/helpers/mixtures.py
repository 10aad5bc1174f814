"""Tiny random mixtures of experts, some of whose experts are the same."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROUTED = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**ROUTED, "shared_expert_intermediate_size": 12},
    "qwen3_moe": {**ROUTED, "norm_topk_prob": False},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **{"moe_intermediate_size": 12, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
        **{"v_head_dim": 8},
    },
}
"""Kind → what makes it small, with four experts of which a token goes to two."""


def mixture(kind="mixtral", seed=0, **changes):
    """A model in which every weight is random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **{**SIZES, **KINDS.get(kind, {}), **changes})
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.state_dict().values():
            torch.nn.init.normal_(weight, std=0.3)
        return model


def with_copies(model, copies, permuted=False):
    """Make experts copies of others, with the same row of the router, in every mixture.

    Args:
        copies: expert → the one that it becomes a copy of.
        permuted: its hidden units stand in another order.
    """
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    for name, weight in state.items():
        for copy, of in copies.items() if is_routed(name) else ():
            weight[copy] = weight[of]
    units = [name for name in state if name.endswith("experts.down_proj")] if permuted else []
    for name in units:
        down, both = state[name], state[name.replace("down_proj", "gate_up_proj")]
        for copy in copies:
            order = torch.randperm(down.shape[-1], generator=generator)
            down[copy] = down[copy][:, order]
            both[copy] = both[copy][torch.cat([order, order + len(order)])]
    return model


def is_routed(name):
    """Whether a tensor has a part for each expert."""
    routers = ("mlp.gate.weight", "e_score_correction_bias")
    return ".experts." in name or name.endswith(routers)


def logits(model):
    """Logits of a fixed text of tokens."""
    tokens = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(tokens).logits
