"""Make LoRA adapters of the quickstart's experts, for `lora.yaml`.

Run `python adapters.py` to rewrite `adapters/` beside this file. For each matrix of a layer an
adapter holds the part of rank `RANK` that is nearest to the expert's task vector (a truncated
singular value decomposition, as in `mergekit-extract-lora`). Embeddings and head are held whole.
Norms are not held: they stay the base's.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
RANK = 16
HERE = Path(__file__).resolve().parent
ZOO = HERE.parent / "quickstart" / "zoo"
WHOLE = ("embed_tokens", "lm_head")
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": RANK,  # the product of the two parts is added as it is
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ],
    "modules_to_save": list(WHOLE),
}


def extract(base: Weights, expert: Weights) -> Weights:
    """Return an adapter's tensors by PEFT's names, in float16."""
    found = {}
    for name, before in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if stem.endswith(WHOLE):
            found[f"{stem}.weight"] = expert[name].clone()
        elif before.ndim == 2:
            # τ ≈ B A: the largest singular values, shared by the two parts
            u, s, v = torch.linalg.svd(expert[name].double() - before.double())
            root = s[:RANK].sqrt()
            found[f"{stem}.lora_A.weight"] = (root[:, None] * v[:RANK]).half()
            found[f"{stem}.lora_B.weight"] = (u[:, :RANK] * root).half()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main() -> None:
    """Write both adapters."""
    base = load_file(ZOO / "base" / "model.safetensors")
    for name in ("math", "lang"):
        folder = HERE / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        adapter = extract(base, load_file(ZOO / name / "model.safetensors"))
        save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"base_model_name_or_path": "base", **CONFIG}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
