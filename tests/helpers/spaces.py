"""Spaces over an invented layout."""

from __future__ import annotations

from evomerge.config import SpaceConfig
from evomerge.models.layout import Layout, TensorSpec
from evomerge.search.spaces.weights import WeightSpace

DIGESTS = {"base": "0", "math": "1", "lang": "2"}


def layout(layers=3, tied=False):
    tensors = [TensorSpec("embed.weight", (8, 4), None, "embeddings", "embed.weight", 0)]
    for i in range(layers):
        for module, suffix in (("attention", "attn.w"), ("mlp", "mlp.w"), ("norms", "norm.w")):
            tensors.append(TensorSpec(f"layers.{i}.{suffix}", (4, 4), i, module, suffix, None))
    tensors.append(TensorSpec("norm.weight", (4,), None, "final_norm", "norm.weight", None))
    if not tied:
        tensors.append(TensorSpec("head.weight", (8, 4), None, "head", "head.weight", 0))
    return Layout("Tiny", layers, "layers", tuple(tensors), {}, 8)


def space(
    method="ties", granularity="layer", genes=None, tied=False, digests=DIGESTS, pieces=(), **more
):
    genes = genes or {"weight": [0, 1.5]}
    weights = {"method": method, "granularity": granularity, "genes": genes, **more}
    return WeightSpace(
        SpaceConfig(weights=weights), layout(tied=tied), digests, seed=1, pieces=dict(pieces)
    )
