"""The plan of a GPU's memory against what is measured there.

Run `python benchmarks/memory_gpu.py` on a machine with a GPU. A worker's merges with its sources
kept on the GPU, and with its sources copied there for every candidate, of the shapes of a Llama of
1.5 B parameters (8 of its 28 layers) with base and three experts in bf16; the candidate is a model
in bf16, and then answers a batch of requests. For each, bytes as planned and as measured, and their
ratio: above 1 the plan was too small. Random tensors; the sources lie in the host's memory.

`--device cpu` cannot be measured; `--small` makes it quick.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from materialize_gpu import Invented, invented, recipe_of
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.common.accelerator import Accelerator, available, synchronize
from evomerge.materialize.feed import CopyStream, DeviceCache, Feed, Prefetched
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.gpu_memory import AHEAD, TOKENS, needs_of
from evomerge.materialize.plan import plan
from evomerge.models.layout import build_skeleton, layout_of
from evomerge.recipe import BASE

METHODS = ("task_arithmetic", "ties")
BATCH = 4


def peak(gpu: Accelerator, action: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that an action had beside what was there; and what it gave."""
    gc.collect()
    synchronize(gpu.device)
    gpu.forget_peak()
    before = gpu.allocated()
    found = action()
    synchronize(gpu.device)
    return gpu.peak() - before, found


def measured(device: str, small: bool) -> dict[str, Any]:
    """Planned and measured bytes of every part."""
    gpu = Accelerator(torch.device(device))
    width = 64 if small else 1536
    config = LlamaConfig(
        vocab_size=512 if small else 151936,
        hidden_size=width,
        intermediate_size=width * 35 // 6,
        num_hidden_layers=2 if small else 8,
        num_attention_heads=4 if small else 12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=TOKENS,
    )
    layout = layout_of(build_skeleton(config, trust_remote_code=False))
    sources: dict[str, Any] = {
        name: Invented(name, {key: tensor.cpu() for key, tensor in drawn.tensors.items()})
        for name, drawn in invented(layout, device).items()  # drawn there, which is faster
    }
    known = {
        name: SimpleNamespace(dtype=source.dtype, config=config) for name, source in sources.items()
    }
    needs = needs_of(known, layout, torch.bfloat16, BATCH)  # type: ignore[arg-type]
    rows: dict[str, tuple[int, int]] = {}

    # 1. the candidate
    def candidate() -> dict[str, torch.Tensor]:
        return {
            t.name: torch.empty(t.shape, dtype=torch.bfloat16, device=gpu.device)
            for t in layout.tensors
        }

    taken, out = peak(gpu, candidate)
    rows["candidate"] = needs.candidate, taken

    def merge(feed: Feed, method: str, out: dict[str, torch.Tensor]) -> None:
        recipe = recipe_of(method, layout, 0)
        steps = plan(recipe, layout, sources)
        kernel = Kernel(sources, feed=feed)
        kernel.fill_all([(out[step.tensor.name], step) for step in steps], recipe.seed)

    # 2. merges of streamed sources, then of sources on the GPU
    for method in METHODS:
        streamed = Prefetched(sources, CopyStream(gpu.device), room=0)
        taken, _ = peak(gpu, lambda f=streamed, m=method, o=out: merge(f, m, o))
        rows[f"{method}, streamed"] = (AHEAD + 2) * needs.step + needs.work, taken
    for method in METHODS:
        kept = DeviceCache(sources, gpu.device)
        taken, _ = peak(gpu, lambda f=kept, m=method, o=out: merge(f, m, o))
        rows[f"{method}, sources on the GPU"] = needs.sources + needs.work, taken
    del kept, streamed, out
    # 3. a batch of the longest requests, logits where they are read off
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model = model.to(device=gpu.device, dtype=torch.bfloat16).eval().requires_grad_(False)
    tokens = torch.zeros(BATCH, TOKENS // (16 if small else 1), dtype=torch.int64).to(gpu.device)

    @torch.inference_mode()
    def score() -> None:
        model(input_ids=tokens, use_cache=True, logits_to_keep=16)

    taken, _ = peak(gpu, score)
    rows[f"{BATCH} requests of {tokens.shape[1]} tokens"] = needs.scoring, taken
    return {
        "device": gpu.name,
        "GB": {
            name: {"planned": planned / 1e9, "measured": found / 1e9, "ratio": found / planned}
            for name, (planned, found) in rows.items()
        },
        "sources on the GPU": BASE in sources and needs.all <= gpu.memory()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default=available() or "none", help="torch's name")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device in ("none", "cpu"):
        print(json.dumps({"skipped": "no GPU"}) if arguments.json else "no GPU here: no memory")
        return 0
    with torch.no_grad():
        found = measured(arguments.device, arguments.small)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, row in found["GB"].items():
        print(
            f"{name:36} planned {row['planned']:8.3f} GB, measured {row['measured']:8.3f} GB, "
            f"ratio {row['ratio']:.2f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
